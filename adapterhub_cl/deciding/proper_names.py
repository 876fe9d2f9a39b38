"""The names in a text, by how they are written, and the words that are too common to be one. Does not import torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Written by examples/make_ordinary_words.py from this project's own texts.
_ORDINARY = Path(__file__).with_name("ordinary.txt")
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # scripts
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])+(?:'(?:(?![{_UNSPACED}])[^\W_])+)*")
_INSIDE = re.compile(r"[\s&/.'-]*")  # what may stand between two words of a name
_LINKS = frozenset(
    (
        "of",
        "the",
        "de",
        "la",
        "le",
        "du",
        "des",
        "von",
        "van",
        "der",
        "den",
        "di",
        "del",
        "della",
        "dos",
        "da",
        "do",
        "al",
        "el",
        "bin",
        "ibn",
        "y",
    )
)
_ARTICLES = frozenset(("the", "a", "an"))
# before a common noun, in languages that write it with a capital letter too
_MORE_ARTICLES = _ARTICLES | frozenset(
    (
        "der",
        "die",
        "das",
        "den",
        "dem",
        "ein",
        "eine",
        "le",
        "la",
        "les",
        "un",
        "une",
        "el",
        "los",
        "las",
        "il",
        "lo",
        "o",
        "os",
        "as",
    )
)
_STOPS = re.compile(r"[?!:;\n\"“„«]")
_ENDS = re.compile(rf"{_STOPS.pattern}|\.\s")


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        key: as it is compared: without case, marks and a possessive s.
        raw: as it was written.
        gap: what stands before it.
        begins: whether a sentence may begin with it.
        owns: whether it had a possessive s.
    """

    key: str
    raw: str
    gap: str
    begins: bool
    owns: bool

    @property
    def is_name(self) -> bool:
        """Whether it is written like a part of a name: with a capital letter or a digit."""
        return any(c.isupper() or c.istitle() or c.isdigit() for c in self.raw)

    @property
    def is_ordinary(self) -> bool:
        return is_ordinary(self.key)


def words_of(text: str) -> list[Word]:
    """The words of a text. Letters with an accent equal those without, and scripts without spaces give single
    characters."""
    plain = unicodedata.normalize("NFC", text.replace("’", "'").replace("ʼ", "'"))
    plain = "".join(c for c in plain if unicodedata.category(c) != "Cf")  # marks that are not seen
    found: list[Word] = []
    end = 0
    for match in _WORD.finditer(plain):
        raw, gap = match[0], plain[end : match.start()]
        bare = "".join(c for c in unicodedata.normalize("NFKD", raw) if not "\u0300" <= c <= "\u036f")
        key = unicodedata.normalize("NFC", bare).casefold()
        owns = key.endswith("'s") and len(key) > 2
        stops = _STOPS if found and len(found[-1].raw) == 1 else _ENDS  # "R. Bell" is one name
        begins = not found or bool(stops.search(gap))
        key = key[:-2] if owns else key
        found.append(Word(key.replace("'", ""), raw[:-2] if owns else raw, gap, begins, owns))
        end = match.end()
    return found


@cache
def _ordinary_words() -> frozenset[str]:
    return frozenset(_ORDINARY.read_text(encoding="utf-8").split())


def is_ordinary(word: str) -> bool:
    """Whether a word (case-folded) is a number, a single letter, or common in English text."""
    return word.isdigit() or (len(word) == 1 and word.isascii()) or word in _ordinary_words()


def names_in(words: Sequence[Word]) -> list[tuple[int, int]]:
    """The names in a text: from and up to which word each goes.

    A name is a run of words with capital letters or digits ("Kirk Hill", "The Lamp of Kelham", "Crowham's Salt"). The
    word that begins a sentence counts if it is no ordinary one, and an article at the front never does. "President of
    Freedonia" and "the CEO of Acme" are two names each, and a title is one.
    """
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(words):
        if not words[at].is_name:
            at += 1
            continue
        start, end = at, at + 1
        while (step := _next_of_name(words, end)) is not None:
            end = step
        while start < end and (
            words[start].key in _ARTICLES | _LINKS or (words[start].begins and words[start].is_ordinary)
        ):
            start += 1
        if start < end:
            found += _divided(words, start, end)
        at = end
    return found


def _next_of_name(words: Sequence[Word], end: int) -> int | None:
    """Where a name ends that goes on after the word before `end`; None if it does not."""
    at = end
    while at < len(words) and at - end < 2 and words[at].key in _LINKS and not words[at].is_name:
        at += 1
    between = words[end : at + 1]
    if at >= len(words) or not words[at].is_name or any(not _INSIDE.fullmatch(w.gap) or w.begins for w in between):
        return None
    return None if words[end - 1].owns and is_acronym(words[at]) else at + 1


def _divided(words: Sequence[Word], start: int, end: int) -> list[tuple[int, int]]:
    """A run as names: what something is called before "of", and whose it is, are two."""
    link = next((k for k in range(start + 1, end) if words[k].key in _LINKS and not words[k].is_name), None)
    if link is None or is_title(words, start):
        return [(start, end)]
    after = next(k for k in range(link, end) if words[k].is_name)
    before = words[start - 1] if start else None
    told = before is not None and before.key in _MORE_ARTICLES and not before.is_name
    common = all(word.is_ordinary or is_acronym(word) for word in words[start:link])
    names_more = not all(word.is_ordinary for word in words[after:end])
    return [(start, link), *_divided(words, after, end)] if told or (common and names_more) else [(start, end)]


def is_acronym(word: Word) -> bool:
    return len(word.raw) > 1 and word.raw.isupper()


def is_title(words: Sequence[Word], start: int) -> bool:
    """Whether a capital article stands before a name, not at the beginning of a sentence."""
    before = words[start - 1] if start else None
    return before is not None and before.key in _ARTICLES and before.is_name and not before.begins
