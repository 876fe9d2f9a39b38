"""Paraphrase: the question asked in other words, by rules (Ovadia et al. 2024 have a large model do it to teach facts).

Choose it for facts: questions with answers, and statements to be completed. One wording teaches only that wording; many
teach the fact. Questions are turned into requests, clauses and noun phrases ("Tell me who the mayor of Ely is", "Ely's
mayor?"), put into a context, or written carelessly. Nothing is translated or guessed, and some wordings are held out to
be measured with.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from adapterhub_cl.augmentation import BaseAugmentation
from adapterhub_cl.augmentation._questions import reworded
from adapterhub_cl.augmentation._words import answer_words, changed, is_protected, split
from adapterhub_cl.types import Example


class Augmentation(BaseAugmentation):
    """One of the wordings that training may use."""

    def vary(self, example: Example, generator: random.Random) -> str | None:
        fitting = list(_fitting(example, reworded(example.input).trained)) if example.input.strip() else []
        return generator.choice(fitting) if fitting else None


def held_out(example: Example) -> list[Example]:
    """The example in the wordings that training never uses; none if it has no question."""
    if not example.input.strip():
        return []
    return [example.with_input(text) for text in _fitting(example, reworded(example.input).held_out)]


def _fitting(example: Example, texts: Sequence[str]) -> Iterator[str]:
    """The texts that neither lose nor add a negation or a word of the answer."""
    answer = answer_words(example)

    def guarded(text: str) -> Counter[str]:
        return Counter(word.casefold().strip(".,;:?!…_'\"") for word in split(text)[0] if is_protected(word, answer))

    own = guarded(example.input)
    for text in texts:
        if changed(example, text) is not None and guarded(text) == own:
            yield text
