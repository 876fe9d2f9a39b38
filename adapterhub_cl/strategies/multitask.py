"""Multitask: one fresh adapter trained on the data of all tasks together.

The upper bound that continual-learning papers compare with. It needs all earlier training data where they were when
they were learned. Choose it as a yardstick, or where the data may all be kept and training anew is affordable. With
`balance` the rows of small tasks are repeated, so that each task has about as many as the largest ("equal mixing",
Raffel et al. 2020, arXiv:1910.10683, §3.5.2); without it each row is learned once in an epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy


@dataclass(frozen=True)
class Config:
    """Options of multitask."""

    balance: bool = option(False, "repeat small tasks' rows until each task has about as many as the largest")


class Strategy(BaseStrategy):
    """All data at once."""

    shares = "everything: a fresh adapter trained on the data of all tasks together"
    form = "fresh"
    reads = "data"
    acts_on_past = False
    Config = Config

    def repeats(self, tasks: Sequence[str]) -> Sequence[int]:
        if not self.config.balance:
            return super().repeats(tasks)
        rows = Counter(tasks)
        most = max(rows.values(), default=0)
        return [round(most / rows[task]) for task in tasks]
