"""Setting the smallest entries of the factors to zero.

By itself this saves nothing: a zero takes as much space on disk and in a product as any number. It makes files that
compress well, and int8 and int4 codes of which many are 0; it exists for comparison, and for those who compress what
they store. Cutting ranks by singular values loses less of ΔW for the same number of parameters, and does save space.
"""

from __future__ import annotations

import torch

from adapterhub_cl.merging.factors import Factors


def sparse(factors: Factors, share: float) -> Factors:
    """ΔW with the smallest entries of either factor set to zero. Needs balanced factors (√σ on either side): the
    entries of any other pair with the same product say little.

    Args:
        share: of the entries of B, and of those of A, rounded down.
    """
    return Factors(_zeroed(factors.b, share), _zeroed(factors.a, share))


def _zeroed(matrix: torch.Tensor, share: float) -> torch.Tensor:
    flat = matrix.flatten().clone()
    order = flat.abs().argsort(stable=True)
    flat[order[: int(share * len(flat))]] = 0.0
    return flat.view_as(matrix)
