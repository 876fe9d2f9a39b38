"""Reservoir sampling: every example has the same chance to be kept, in one pass (Vitter 1985, algorithm R).

Choose it for generation tasks and streams whose end is not known; it keeps the label frequencies of the data.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from adapterhub_cl.replay import BasePolicy
from adapterhub_cl.types import Example


class Policy(BasePolicy):
    """Uniform over the examples."""

    def select(self, examples: Sequence[Example], size: int, generator: random.Random) -> list[int]:
        kept = list(range(min(size, len(examples))))
        for i in range(size, len(examples)):
            place = generator.randrange(i + 1)
            if place < size:
                kept[place] = i
        return sorted(kept)
