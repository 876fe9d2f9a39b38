"""Setting the smallest entries of the factors to zero.

By itself this saves nothing: a zero takes as much room on the disk and in a product as any number. It makes files that
compress, and int8 and int4 codes of which many are 0; it is here to be compared with, and for those who pack what they
store. Cutting ranks by singular values loses less of ΔW for the same number of numbers, and does save.
"""

from __future__ import annotations

import torch

from adapterhub_cl.merging.factors import Factors


def sparse(factors: Factors, share: float) -> Factors:
    """ΔW with the smallest entries of either factor zeroed; give it balanced factors (√σ on either side), since the
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
