"""Incremental: a new adapter per task, trained on top of all earlier ones, which are added and frozen.

"IncLoRA" in Wang et al. 2023 (arXiv:2310.14152): the sum of all adapters answers for every task. What is stored is
that sum, exactly, as one LoRA of the ranks' sum, so plain PEFT opens it. Choose it as the baseline of `olora` and
`inflora`, which add to it that the new adapter keeps out of the earlier ones' way.
"""

from __future__ import annotations

from adapterhub_cl.strategies import BaseStrategy


class Strategy(BaseStrategy):
    """A new adapter over the frozen newest one."""

    shares = "the frozen sum of all earlier adapters, which the new one is added to"
    form = "stacked"
    acts_on_past = False
