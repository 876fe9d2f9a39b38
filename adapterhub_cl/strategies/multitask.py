"""Multitask: one fresh adapter trained on the data of all tasks together.

The upper bound that continual-learning papers compare with. It needs all earlier training data where they were when
they were learned. Choose it as a yardstick, or where the data may all be kept and training anew is affordable.
"""

from __future__ import annotations

from adapterhub_cl.strategies import BaseStrategy


class Strategy(BaseStrategy):
    """All data at once."""

    shares = "everything: a fresh adapter trained on the data of all tasks together"
    form = "fresh"
    reads = "data"
