"""Hard: the examples with the highest loss under the adapter (hard-example mining, Shrivastava et al. 2016).

Choose it for clean data whose rare cases matter. Avoid it for data with wrong labels: those have the highest loss.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from adapterhub_cl.replay import BasePolicy, Evidence
from adapterhub_cl.types import Example


class Policy(BasePolicy):
    """Highest loss first; ties are decided at random."""

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def select(self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence) -> list[int]:
        if not examples or size == 0:
            return []
        losses = evidence.losses()
        order = generator.sample(range(len(examples)), len(examples))
        return sorted(order, key=lambda i: -losses[i])[:size]  # a stable sort: ties stay in random order
