"""Balanced: the same number of examples for every answer, as far as possible (as in GDumb, Prabhu et al. 2020).

Choose it for choice tasks with uneven labels: a small random sample loses rare labels first. With free answers, which
are all different, it is the same as reservoir.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from adapterhub_cl.replay import BasePolicy, Evidence
from adapterhub_cl.replay._groups import by_answer, in_turn
from adapterhub_cl.types import Example


class Policy(BasePolicy):
    """Uniform over the answers, then over the examples of an answer; takes the answers in turn."""

    def select(
        self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence | None = None
    ) -> list[int]:
        queues = [generator.sample(group, len(group)) for group in by_answer(examples)]
        generator.shuffle(queues)
        return in_turn(queues, size)
