"""Multitask: one fresh adapter trained on the data of all tasks together.

The upper bound that continual-learning papers compare with. It needs all earlier training data at their original
paths. Choose it as a reference, or if all data may be stored and retraining is affordable. With `balance` the rows of
small tasks are repeated, so that each task has about as many as the largest ("equal mixing", Raffel et al. 2020,
arXiv:1910.10683, §3.5.2); without it each row is used once in an epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy


@dataclass(frozen=True)
class Config:
    balance: bool = option(False, "repeat small tasks' rows until each task has about as many as the largest")


class Strategy(BaseStrategy):
    """Trains on all data at once."""

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
