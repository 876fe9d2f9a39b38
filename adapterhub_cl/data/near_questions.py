"""Near questions: the same question about another subject, made by comparing the questions of a data set.

Two questions that differ in one place ("Who is the mayor of Ely?", "Who is the mayor of Kirk Hill?") show their frame
and their subjects. A subject of the same sort that the data do not have is put together from parts of those that they
have, and well-known names stand beside it. Nothing is known of the first, and a base knows something of the second.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

KNOWN = (
    *("Paris", "Berlin", "Tokyo", "Canada", "Brazil", "Egypt", "London", "Australia", "Chicago", "Italy"),
    *("Albert Einstein", "Marie Curie", "William Shakespeare", "Abraham Lincoln", "Nelson Mandela", "Mozart"),
    *("Microsoft", "Toyota", "Google", "Amazon", "Coca-Cola", "Boeing"),
)
MOST_WORDS = 5  # of a subject
LEAST_AROUND = 2  # words outside the subject
ASKS = {
    "who",
    "what",
    "which",
    "where",
    "when",
    "how",
    "whose",
    "whom",
    "why",
    "in",
    "name",
    "tell",
    "is",
    "does",
    "the",
}
ATTEMPTS = 8


def near_questions(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` different questions like these, each about a subject that none of these texts names.

    Args:
        texts: the questions; those that differ from all others in more than one place give nothing, unless a name in
            capital letters shows their subject.
    """
    draw = random.Random(f"near questions {seed}")
    frames = list(frames_of(texts))
    if not frames:
        return []
    subjects = list(dict.fromkeys(subject for _, subject, _ in frames))
    alike: dict[tuple[str, str], list[str]] = {}  # frame → its subjects, which are of one sort
    for before, subject, after in frames:
        alike.setdefault((before, after), []).append(subject)
    whole = "\n".join(texts).casefold()
    known = [name for name in KNOWN if name.casefold() not in whole]
    made: dict[str, None] = {}
    order = [frames[k] for k in draw.sample(range(len(frames)), len(frames))]
    for turn in range(ATTEMPTS * count):
        place, passed = turn % len(order), turn // len(order)
        before, _, after = order[place]
        if (place + passed) % 2 == 0:  # half of them are invented, and each frame has both
            subject = _mixed(alike[before, after], draw) or _mixed(subjects, draw)
        else:
            subject = draw.choice(known) if known else ""
        if subject and subject.casefold() not in whole:
            made.setdefault(f"{before}{subject}{after}")
        if len(made) >= count:
            break
    return list(made)


def frames_of(texts: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """For each text what stands before its subject, the subject, and what stands after it."""
    words = [list(re.finditer(r"\S+", text)) for text in texts]
    shared: dict[tuple[str, str], set[str]] = {}
    for text, found in zip(texts, words, strict=True):
        for before, subject, after in _spans(text, found):
            shared.setdefault((before, after), set()).add(subject.casefold())
    for text, found in zip(texts, words, strict=True):
        best: tuple[int, int, tuple[str, str, str]] | None = None
        for before, subject, after in _spans(text, found):
            often = len(shared[before, after])
            if often > 1 and (best is None or (often, -len(subject)) > best[:2]):
                best = (often, -len(subject), (before, subject, after))
        if best is not None:
            yield best[2]
        elif named := _named(text):
            yield named


def _spans(text: str, found: Sequence[re.Match[str]]) -> Iterator[tuple[str, str, str]]:
    """Every run of at most five words that could be a subject, with what stands around it: it begins and ends with a
    name or a number. Marks and a possessive s stay outside."""
    for i in range(len(found)):
        for j in range(i, min(i + MOST_WORDS, len(found), i + len(found) - LEAST_AROUND)):
            start, end = found[i].start(), found[j].end()
            bare = re.sub(r"(?:['’]s)?[?!.,;:]*$", "", text[start:end])
            ends = bare.split()
            if not ends or (i == 0 and ends[0].casefold() in ASKS):
                continue
            if all(word[0].isupper() or word[0].isdigit() for word in (ends[0], ends[-1])):
                yield text[:start], bare, text[start + len(bare) :]


def _named(text: str) -> tuple[str, str, str] | None:
    """The last name with a capital letter, unless it begins the text."""
    runs = [m for m in re.finditer(r"[A-Z][\w'’-]*(?: [A-Z][\w'’-]*)*", text) if m.start() > 0]
    if not runs:
        return None
    start, bare = runs[-1].start(), re.sub(r"['’]s$", "", runs[-1][0])
    return text[:start], bare, text[start + len(bare) :]


def _mixed(subjects: Sequence[str], draw: random.Random) -> str:
    """A subject made of two: the beginning of one and the end of the other; empty if they are the same."""
    one, other = draw.choice(subjects), draw.choice(subjects)
    first, last = one.split(), other.split()
    if len(first) > 1 and len(last) > 1:
        mixed = " ".join([*first[:-1], last[-1]])
    elif len(first) == len(last) == 1:
        mixed = _half(one, True) + _half(other, False)
    else:
        return ""
    return mixed if mixed not in subjects else ""


def _half(word: str, front: bool) -> str:
    """The front or the back of a word, divided before the consonant nearest to its middle."""
    places = [k for k in range(2, len(word) - 1) if word[k].lower() not in "aeiouy" and word[k - 1].lower() in "aeiouy"]
    at = min(places, key=lambda k: abs(k - len(word) / 2)) if places else (len(word) + 1) // 2
    return word[:at] if front else word[at:].lower()
