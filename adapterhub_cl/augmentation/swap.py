"""Swap: two words change places, once for every ten words (EDA, Wei & Zou 2019).

Choose it for short texts whose topic or mood decides the answer. Avoid it for inputs whose order matters, such as
lists of options. Negations, the word after one, and words of the answer stay in place.
"""

from __future__ import annotations

import random

from adapterhub_cl.augmentation import BaseAugmentation
from adapterhub_cl.augmentation._words import changed, free_places, join, split
from adapterhub_cl.types import Example

SHARE = 0.1  # swaps per word


class Augmentation(BaseAugmentation):
    """Random swaps of two different words."""

    def vary(self, example: Example, generator: random.Random) -> str | None:
        words, gaps = split(example.input)
        places = free_places(words, example)
        if len({words[i].casefold() for i in places}) < 2:
            return None
        for _ in range(max(1, round(SHARE * len(words)))):
            first, second = generator.sample(places, 2)
            words[first], words[second] = words[second], words[first]
        return changed(example, join(words, gaps))
