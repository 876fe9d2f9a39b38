"""Shared by the word-level methods: splitting a text into words and gaps, and which words must not change."""

from __future__ import annotations

import re

from adapterhub_cl.types import Example

NEGATIONS = frozenset(
    [
        "no",
        "not",
        "never",
        "none",
        "nobody",
        "nothing",
        "nor",
        "neither",
        "nowhere",
        "without",
        "cannot",
        "cant",
        "dont",
        "wont",
        "isnt",
        "wasnt",
        "arent",
        "werent",
        "doesnt",
        "didnt",
        "hasnt",
        "havent",
        "hadnt",
        "wouldnt",
        "shouldnt",
        "couldnt",
        "aint",
        "n't",
        "nt",
        "hardly",
        "barely",
        "scarcely",
        "unless",
        "except",
    ]
)
_CONTRACTED = re.compile(r"n['’]t\b")


def split(text: str) -> tuple[list[str], list[str]]:
    """The words, and the gaps around them: `join(words, gaps)` restores the text; there is one more gap than words."""
    return re.findall(r"\S+", text), re.split(r"\S+", text)


def join(words: list[str], gaps: list[str]) -> str:
    """The reverse of `split`."""
    return "".join(gap + word for gap, word in zip(gaps, [*words, ""], strict=True))


def is_negation(word: str) -> bool:
    """Whether the word negates, with or without punctuation around it: `not`, `Don't,`."""
    folded = word.casefold()
    return bool(_CONTRACTED.search(folded)) or any(part in NEGATIONS for part in re.findall(r"\w+", folded))


def answer_words(example: Example) -> frozenset[str]:
    """The words of the answer, case-folded."""
    return frozenset(re.findall(r"\w+", (example.answer or "").casefold()))


def is_protected(word: str, answer: frozenset[str]) -> bool:
    """Whether the word is a negation, or contains a word of the answer (see `answer_words`)."""
    return is_negation(word) or not answer.isdisjoint(re.findall(r"\w+", word.casefold()))


def free_places(words: list[str], example: Example) -> list[int]:
    """Indices of the words that may be changed: not protected, and not directly after a negation."""
    answer = answer_words(example)
    negations = [is_negation(word) for word in words]
    return [i for i, word in enumerate(words) if not is_protected(word, answer) and not (i > 0 and negations[i - 1])]


def changed(example: Example, text: str) -> str | None:
    """The text, or None if it equals the example's input apart from case and spaces."""
    return None if text.casefold().split() == example.input.casefold().split() else text
