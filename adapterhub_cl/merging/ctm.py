"""ctm: compresses the updates into one shared subspace of the final rank, then merges their coordinates (Compress
then Merge; He et al. 2026, arXiv:2606.03723).

A merge that is cut to a rank afterwards favours the strong updates. Here the subspace is chosen first: U and V with
`rank` orthonormal columns that together keep most of all updates, each rescaled to λ‖·‖ = β‖ΔWᵢ‖ + (1 − β)·mean
norm. That is a Tucker-2 decomposition, begun by HOSVD and improved by HOOI, in the core of the factors and so
without loss. The updates themselves have the r×r coordinates Uᵀ·ΔWᵢ·V, on which TIES runs; the result has the rank
by construction. In the paper it is ahead of KnOTS and core space by up to five points on eight vision tasks at one
LoRA's rank. Choose it where the result must be no larger than one of its parents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from adapterhub_cl.errors import UsageError
from adapterhub_cl.merging import BaseMethod, Layer
from adapterhub_cl.merging._elementwise import agreeing_mean, share, trim
from adapterhub_cl.options import option

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.merging.factors import Factors

SETTLED = 1e-7  # relative gain of an iteration that is not worth another one
MOST = 50  # iterations


@dataclass(frozen=True)
class Config:
    rank: int = option(
        0, "rank of the shared subspace, and so of the result; 0: --rank, or the largest rank of the parents"
    )
    beta: float = option(0.5, "how much of the updates' own norms counts in the choice of the subspace, 0 to 1")
    density: float = option(0.5, "share of each update's coordinates to keep, the largest")

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UsageError(f"ctm.rank must be at least 0, not {self.rank}", "--set ctm.rank=16")
        if not 0 <= self.beta <= 1:
            raise UsageError(f"ctm.beta must be between 0 and 1, not {self.beta:g}", "0.5 is usual")
        share("ctm.density", self.density)


def rescaled(cores: torch.Tensor, beta: float) -> torch.Tensor:
    """Updates `[n, p, q]` with norms between their own (β = 1) and the mean of all that are not zero (β = 0)."""
    import torch

    norms = torch.linalg.matrix_norm(cores)
    there = norms > 0
    mean = norms[there].mean() if bool(there.any()) else norms.sum()
    factors = torch.where(there, (beta * norms + (1 - beta) * mean) / norms.clamp(min=1e-300), norms)
    return cores * factors[:, None, None]


def shared_subspace(cores: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal U `[p, r]` and V `[q, r]` that keep most of ‖Uᵀ·Cᵢ·V‖² over all i: Tucker-2 by HOSVD and HOOI.

    Args:
        cores: `[n, p, q]`, fp64.
    """
    import torch

    def leading(gram: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
        return found

    u = leading(torch.einsum("nij,nkj->ik", cores, cores))
    v = leading(torch.einsum("nij,nik->jk", cores, cores))
    kept = -1.0
    for _ in range(MOST):
        half = cores @ v
        u = leading(torch.einsum("nij,nkj->ik", half, half))
        half = u.T @ cores
        v = leading(torch.einsum("nij,nik->jk", half, half))
        now = float(((u.T @ cores @ v) ** 2).sum())
        if now <= kept * (1 + SETTLED):
            break
        kept = now
    return u, v


class Method(BaseMethod):
    purpose = "compresses the updates into a shared subspace of the final rank, then runs ties on their coordinates"
    Config = Config
    identity_options: ClassVar = {"density": 1.0}
    opposites_cancel = False

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.entered, self.kept = 0.0, 0.0  # ‖·‖² of all updates, and of what the subspaces hold of them

    def default_weights(self, count: int) -> list[float]:
        return [1.0] * count

    def default_rank(self, ranks: Sequence[int]) -> int:
        return self.config.rank or max(ranks)

    def layer(self, layer: Layer) -> Factors:
        import torch

        from adapterhub_cl.merging.factors import Factors, core

        largest = max(part.rank for part in layer.parts)
        if not largest:
            return layer.parts[0]
        shared = core(layer.weighted)
        cores = torch.stack([c.double() for c in shared.cores])
        rank = min(self.config.rank or self.asked_rank or largest, *cores.shape[1:])
        u, v = shared_subspace(rescaled(cores, self.config.beta), rank)
        # An adapter that does not change the layer must not vote: rounding would give its zeros a sign.
        votes = torch.tensor([bool(part.rank) for part in layer.parts])
        coordinates = (u.T @ cores @ v).float() * votes[:, None, None]
        self.entered += float((cores**2).sum())
        self.kept += float(((u.T @ cores @ v) ** 2).sum())
        merged = agreeing_mean(trim(coordinates, self.config.density))
        return Factors(shared.left @ u.float() @ merged, (shared.right @ v.float()).T.contiguous())

    def summary(self) -> dict[str, Any]:
        """`compression_error`: how much of the updates lies outside of the shared subspaces, ‖outside‖ ÷ ‖all‖. The
        truncation error of a merge does not count it, because the result has the rank by construction."""
        outside = max(0.0, 1 - self.kept / self.entered) if self.entered else 0.0
        return {"compression_error": round(outside**0.5, 6)}
