"""Balanced: the same number of examples for every answer, as far as they go (as in GDumb, Prabhu et al. 2020).

Choose it for choice tasks with uneven labels: rare labels are the first that a small random sample loses. Free
answers are all different, and there it is the same as reservoir.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from adapterhub_cl.replay import BasePolicy
from adapterhub_cl.types import Example


class Policy(BasePolicy):
    """Uniform over the answers, then over the examples of an answer."""

    def select(self, examples: Sequence[Example], size: int, generator: random.Random) -> list[int]:
        groups: dict[str | None, list[int]] = {}
        for i, example in enumerate(examples):
            groups.setdefault(example.answer, []).append(i)
        queues = [generator.sample(group, len(group)) for group in groups.values()]
        generator.shuffle(queues)
        kept: list[int] = []
        while len(kept) < size and any(queues):
            for queue in queues:
                if queue and len(kept) < size:
                    kept.append(queue.pop())
        return sorted(kept)
