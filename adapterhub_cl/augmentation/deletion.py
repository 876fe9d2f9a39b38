"""Deletion: drops each word with probability 0.1 (EDA, Wei & Zou 2019).

Choose it for texts of a sentence or more with some redundancy. At least one word is dropped and at least half of them
stay. Negations, the word after one, and words of the answer are never dropped.
"""

from __future__ import annotations

import random

from adapterhub_cl.augmentation import BaseAugmentation
from adapterhub_cl.augmentation._words import changed, free_places, join, split
from adapterhub_cl.types import Example

PROBABILITY = 0.1


class Augmentation(BaseAugmentation):
    """Random deletion of words, with the space before each."""

    def vary(self, example: Example, generator: random.Random) -> str | None:
        words, gaps = split(example.input)
        places = free_places(words, example)
        most = len(words) // 2
        if not places or most == 0:
            return None
        gone = [i for i in places if generator.random() < PROBABILITY] or [generator.choice(places)]
        out = set(generator.sample(gone, min(len(gone), most)))
        kept = [i for i in range(len(words)) if i not in out]
        inner = [gaps[i] for i in kept[1:]]
        return changed(example, join([words[i] for i in kept], [gaps[0], *inner, gaps[-1]]))
