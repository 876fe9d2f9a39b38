"""perplexity: the task whose adapter finds the input least surprising (lowest loss of the input's tokens; the expert
choice of Li et al. 2022, Branch-Train-Merge, arXiv:2208.03306).

It computes the input once under every adapter, so its cost grows with their number. Adapters that were trained only on
answers never had to predict inputs, and their losses differ little. Choose it for adapters that were trained on raw
text (knowledge updates), or to check another router.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterhub_cl.routing import BaseRouter

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.routing import Seen


class Router(BaseRouter):
    purpose = "lowest loss of the input under each adapter; needs one pass per adapter"
    reads = ""

    def learn(self, task: str, known: Any) -> None:
        if task not in self.tasks:
            self.tasks.append(task)

    def unlearn(self, task: str, known: Any) -> None:
        if task in self.tasks:
            self.tasks.remove(task)

    def scores(self, seen: Seen) -> torch.Tensor:
        return -seen.losses(self.tasks)
