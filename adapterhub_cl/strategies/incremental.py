"""Incremental: a new adapter per task, trained on top of the frozen sum of all earlier ones.

"IncLoRA" in Wang et al. 2023 (arXiv:2310.14152): the sum of all adapters answers every task. The exact sum is stored as
one LoRA whose rank is the sum of all ranks, so plain PEFT opens it. Choose it as the baseline for `olora` and
`inflora`, which also keep the new adapter from interfering with the earlier ones.
"""

from __future__ import annotations

from adapterhub_cl.strategies import BaseStrategy


class Strategy(BaseStrategy):
    """A new adapter over the frozen newest one."""

    shares = "the frozen sum of all earlier adapters, to which the new one is added"
    form = "stacked"
    acts_on_past = False
