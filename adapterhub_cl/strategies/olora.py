"""O-LoRA, orthogonal low-rank adapters (Wang et al. 2023, arXiv:2310.14152): the new adapter is kept orthogonal to the
subspaces of the earlier, frozen ones.

The rows of each A span the inputs that an adapter responds to. The loss gets `weight` · ‖A_new·Q‖², with Q an
orthonormal basis of the row space of all earlier A, so that its meaning does not depend on their scale. Choose it if
no samples may be stored; the stored sum grows by one rank per task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy, Stage

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch


@dataclass(frozen=True)
class Config:
    weight: float = option(0.5, "weight of the overlap with earlier subspaces in the loss (λ)")

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"olora.weight must be at least 0, not {self.weight:g}", "0.5 is usual")


def row_basis(a: torch.Tensor) -> torch.Tensor:
    """Orthonormal basis `[in, k]` of the row space of A `[r, in]`; k is its numerical rank."""
    import torch

    values: torch.Tensor
    vectors: torch.Tensor
    _, values, vectors = torch.linalg.svd(a.float(), full_matrices=False)
    return vectors[values > 1e-6 * values.max().clamp(min=1e-30)].T.contiguous()


class Strategy(BaseStrategy):
    """Keeps the new adapter orthogonal to the earlier ones."""

    shares = "the frozen sum of all earlier adapters; the new one is kept orthogonal to it"
    form = "stacked"
    reads_logits = False
    Config = Config

    def begin(self, stage: Stage) -> None:
        frozen = dict(stage.model.named_parameters())
        self.bases = {}
        for name in stage.parameters:
            if ".lora_A." in name and name.replace(".default.", ".beneath.") in frozen:
                self.bases[name] = row_basis(frozen[name.replace(".default.", ".beneath.")].detach())

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        if not self.bases or not self.config.weight:
            return None
        overlaps = [((stage.parameters[name] @ basis) ** 2).sum() for name, basis in self.bases.items()]
        return sum(overlaps[1:], start=overlaps[0]) * float(self.config.weight)
