"""How free answers are compared: which answers are equal, and what counts as a word.

Text is compared as in SQuAD: ignoring case, and word by word without punctuation and articles. Exceptions keep what
this would blur: numbers with sign, decimal point and unit (`-5`, `3.5`, `50%`), words with meaningful signs (`C#`,
`@ann`, `a_b`), symbols (`👍`, `→`, `≤`), and scripts without spaces between words, which are compared character by
character.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from adapterhub_cl.data.plain_text import UNSPACED, pieces, plain

QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`", "「": "」", "『": "』"}
DOUBLE = '"“”«»„'
MARKS = ".!?…。！？｡"  # they end sentences
PAUSES = ",;:，；：、"
CODE = re.compile(r"[{}()\[\]=<>_/\\|&^~*#@$%+]")
MEANINGFUL = re.compile(r"\d|[#+%$€£¥@*_=<>/\\^&|~{}\[\]°‰]")
ARTICLES = {"a", "an", "the"}


def normalise(text: str) -> str:
    """Case-folded, with spaces collapsed; surrounding quotes and trailing sentence marks are removed, unless nothing
    else is there. Every other character stays, so that `-5`, `5`, `5%` and `.5` are four answers."""
    collapsed = plain(text)
    bare, before = collapsed, ""
    while bare != before:
        before = bare
        bare = _unmarked(_unquoted(bare)).strip()
    return bare or collapsed


def _unquoted(text: str) -> str:
    if len(text) > 2 and QUOTES.get(text[0]) == text[-1]:
        return text[1:-1]
    if len(text) > 1 and text[0] in DOUBLE and text.count(text[0]) == 1 and not any(c in text[1:] for c in DOUBLE):
        return text[1:]
    if len(text) > 1 and text[-1] in DOUBLE and not any(c in text[:-1] for c in DOUBLE) and not text[-2].isdigit():
        return text[:-1]
    return text


def _unmarked(text: str) -> str:
    while len(text) > 1 and (text[-1] in MARKS or (text[-1] in PAUSES and not CODE.search(text))):
        # "5!" is a different number from "5", but "5." is not
        if text[-1] in "!?" and not (text[-2].isalpha() or text[-2] in MARKS + DOUBLE + "'’)"):
            break
        if not any(character.isalnum() for character in text):
            break
        text = text[:-1].rstrip()
    return text


def words(text: str, *, articles: bool = True) -> list[str]:
    """The words of a text, in order.

    Args:
        articles: whether to keep a, an and the.
    """
    return list(_words(text, articles))


@lru_cache(maxsize=4096)
def _words(text: str, articles: bool) -> tuple[str, ...]:
    found: list[str] = []
    for piece in pieces(plain(text)):
        found += [piece] if UNSPACED.match(piece) else _word(piece, articles)
    return tuple(found)


def _word(piece: str, articles: bool) -> list[str]:
    bare = normalise(piece).strip("()[]" + DOUBLE) if piece else ""
    if not MEANINGFUL.search(bare):
        bare = "".join(c for k, c in enumerate(bare) if _is_kept(c, bare[max(0, k - 1) : k], bare[k + 1 :]))
    return [bare] if bare and (articles or bare not in ARTICLES) else []


def _is_kept(character: str, before: str, behind: str) -> bool:
    """Whether a character of a word means something: no punctuation, but the minus of `A-` and `-∞`."""
    kind = unicodedata.category(character)
    if character in "-−":
        return (not behind and before.isalnum()) or (not before and unicodedata.category((behind or " ")[0])[0] == "S")
    return kind[0] != "P" and kind != "Sk"
