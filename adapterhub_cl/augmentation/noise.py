"""Noise: typing errors in one of ten words (after Belinkov & Bisk 2018): two letters change places, one is lost, or one
is doubled.

Choose it for text that users type: requests, tickets, chat. Changes only words of four or more letters, and never their
first letter; negations, the word after one, and words of the answer stay, and no error creates one of them.
"""

from __future__ import annotations

import random

from adapterhub_cl.augmentation import BaseAugmentation
from adapterhub_cl.augmentation._words import answer_words, changed, free_places, is_protected, join, split
from adapterhub_cl.types import Example

SHARE = 0.1  # of the words
MIN_LETTERS = 4


class Augmentation(BaseAugmentation):
    """One typing error in each of a few words."""

    def vary(self, example: Example, generator: random.Random) -> str | None:
        words, gaps = split(example.input)
        places = [i for i in free_places(words, example) if sum(c.isalpha() for c in words[i]) >= MIN_LETTERS]
        if not places:
            return None
        answer = answer_words(example)
        for i in generator.sample(places, min(len(places), max(1, round(SHARE * len(words))))):
            slipped = slip(words[i], generator)
            if not is_protected(slipped, answer):
                words[i] = slipped
        return changed(example, join(words, gaps))


def slip(word: str, generator: random.Random) -> str:
    """The word with one typing error after its first letter; the word itself if none is possible."""
    letters = [i for i, c in enumerate(word) if c.isalpha()][1:]
    pairs = [i for i in letters if i + 1 in letters and word[i].casefold() != word[i + 1].casefold()]
    if not letters:
        return word
    kind = generator.choice(("transpose", "drop", "double") if pairs else ("drop", "double"))
    if kind == "transpose":
        i = generator.choice(pairs)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = generator.choice(letters)
    return word[:i] + word[i + 1 :] if kind == "drop" else word[:i] + word[i] + word[i:]
