"""Sequential: one adapter trained on task after task, with no protection against forgetting.

The lower bound of continual-learning papers ("SeqLoRA" in Wang et al. 2023, arXiv:2310.14152). Choose it to measure
what the other strategies save, or if only the newest task matters.
"""

from __future__ import annotations

from adapterhub_cl.strategies import BaseStrategy


class Strategy(BaseStrategy):
    """Starts from the newest adapter of the hub."""

    shares = "all weights: continues training the newest adapter"
    form = "continued"
    acts_on_past = False
