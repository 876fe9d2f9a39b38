"""SLAO, a single LoRA that is merged continually (Qiao & Mahdavi 2025, arXiv:2512.23017).

A new task starts from the last task's own B and from an orthonormal basis of its A. After training it is merged into
the one stored adapter: A is replaced, and B moves 1/√t of the way to the new one, where t counts the tasks, so the
first tasks weigh as much as the last. Choose it if no samples may be stored and the adapter's size must stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub_cl.strategies import BaseStrategy, Stage, memory
from adapterhub_cl.types import Example

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.tokenise import Tokens


def orthonormal_rows(a: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows `[r, in]` that span those of A `[r, in]`: Qᵀ of Aᵀ = QR, r ≤ in."""
    import torch

    basis: torch.Tensor = torch.linalg.qr(a.float().T).Q
    return basis.T.contiguous()


class Strategy(BaseStrategy):
    """Trains each task separately, then merges it."""

    shares = "one adapter: each task is learned separately and merged into it"
    form = "continued"
    of_weights = True

    def begin(self, stage: Stage) -> None:
        found = memory(stage.parent, "slao")
        self.tasks = int(found.get("tasks", 0)) + 1 if found else 1
        self.learned: dict[str, torch.Tensor] = {}
        self.merged: dict[str, torch.Tensor] = {}
        if stage.parent is None:
            return
        self.tasks = max(2, self.tasks)  # an adapter of another strategy counts as one task
        for name, p in stage.parameters.items():
            if ".lora_B." in name:
                self.merged[name] = p.detach().clone()
                p.data.copy_(found.get(name, p.detach()).to(p.device))
            elif ".lora_A." in name and p.shape[0] <= p.shape[1]:
                p.data.copy_(orthonormal_rows(p.detach()))

    def end(self, stage: Stage) -> None:
        for name, p in stage.parameters.items():
            if ".lora_B." in name:
                self.learned[name] = p.detach().clone()
                if name in self.merged:
                    p.data.copy_(self.merged[name] + (p.detach() - self.merged[name]) / self.tasks**0.5)

    def remember(
        self, stage: Stage, samples: Sequence[Example], tokens: Sequence[Tokens]
    ) -> Mapping[str, torch.Tensor]:
        import torch

        return {**self.learned, "tasks": torch.tensor(self.tasks)}

    def summary(self) -> dict[str, Any]:
        return {"tasks": self.tasks}
