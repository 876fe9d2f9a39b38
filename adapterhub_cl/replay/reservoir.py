"""Reservoir sampling: every example is chosen with the same chance (the distribution of Vitter 1985, algorithm R).

Choose it for generation tasks and streams whose end is not known; it preserves the label frequencies of the data.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from adapterhub_cl.replay import BasePolicy, Evidence
from adapterhub_cl.types import Example


class Policy(BasePolicy):
    """Uniform over the examples, in random order: every prefix is a uniform sample too."""

    def select(
        self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence | None = None
    ) -> list[int]:
        return generator.sample(range(len(examples)), len(examples))[:size]
