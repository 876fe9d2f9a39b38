"""Sequential: one adapter trained on and on, task after task, with nothing done against forgetting.

The lower bound of the continual-learning papers ("SeqLoRA" in Wang et al. 2023, arXiv:2310.14152). Choose it to
measure what the other strategies save, or where only the newest task matters.
"""

from __future__ import annotations

from adapterhub_cl.strategies import BaseStrategy


class Strategy(BaseStrategy):
    """Starts from the newest adapter of the hub."""

    shares = "all weights: starts from the newest adapter and goes on training it"
    form = "continued"
    acts_on_past = False
