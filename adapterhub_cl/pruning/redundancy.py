"""How similar two adapters are: the overlap of the spaces that their updates span, and the angle between them.

In each layer ΔW maps from its row space (the right singular vectors V) into its column space (the left ones, U). The
overlap of two such spaces is ‖Q₁ᵀQ₂‖²_F ÷ min(r₁, r₂): 1 if one contains the other, about max(r₁, r₂) ÷ width for
unrelated spaces. Row spaces alone say little: adapters trained from the same seed start from the same A and keep much
of its row space, whatever they learned. So the similarity of a layer is the geometric mean of both overlaps. A space
also has no direction: ΔW and −ΔW span the same one. So a pair counts as redundant only if its predictions agree too,
or, if none were compared, if ΔW₁ and ΔW₂ point the same way (cosine).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.merging.factors import Factors, decompose, inner

ROUNDING = 1e-6  # relative to a layer's largest singular value


@dataclass(frozen=True)
class Similarity:
    """A comparison of two adapters; means over the layers that either changes, weighted by ‖ΔW₁‖ + ‖ΔW₂‖.

    Attributes:
        columns: overlap of the column spaces, 0 to 1; `rows` of the row spaces.
        spaces: √(columns · rows), layer by layer; compared with the threshold.
        cosine: ⟨ΔW₁, ΔW₂⟩ ÷ (‖ΔW₁‖·‖ΔW₂‖) over all layers together, −1 to 1.
    """

    columns: float
    rows: float
    spaces: float
    cosine: float


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The overlap of the spaces that two sets of orthonormal columns span, 0 to 1; 0 if either is empty."""
    least = min(one.shape[1], other.shape[1])
    return min(1.0, float((one.T @ other).double().square().sum()) / least) if least else 0.0


def spaces(factors: Factors) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Orthonormal bases of the column and the row space of ΔW, and ‖ΔW‖."""
    u, s, v = decompose(factors)
    kept = int((s > ROUNDING * s[0]).sum()) if len(s) else 0
    return u[:, :kept], v[:, :kept], float(s.norm())


class _Sum:
    """The sums over layers for one pair."""

    def __init__(self) -> None:
        self.weight = self.columns = self.rows = self.spaces = self.inner = 0.0

    def add(self, weight: float, columns: float, rows: float, product: float) -> None:
        self.weight += weight
        self.columns += weight * columns
        self.rows += weight * rows
        self.spaces += weight * (columns * rows) ** 0.5
        self.inner += product


def similarities(adapters: Sequence[LoraFile]) -> dict[tuple[int, int], Similarity]:
    """Compare every pair of adapters of one base, layer by layer: only one layer of each is in memory."""
    pairs = {pair: _Sum() for pair in combinations(range(len(adapters)), 2)}
    squares = [0.0] * len(adapters)
    for name in dict.fromkeys(name for adapter in adapters for name in adapter.modules):
        here = {i: Factors(*adapter.factors(name)) for i, adapter in enumerate(adapters) if adapter.rank(name)}
        bases = {i: spaces(factors) for i, factors in here.items()}
        for i, (_, _, size) in bases.items():
            squares[i] += size**2
        for (i, j), total in pairs.items():
            weight = sum(bases[k][2] for k in (i, j) if k in bases)
            if i in here and j in here:
                columns, rows = (overlap(x, y) for x, y in zip(bases[i][:2], bases[j][:2], strict=True))
                total.add(weight, columns, rows, inner(here[i], here[j]))
            else:
                total.add(weight, 0.0, 0.0, 0.0)
    return {(i, j): _finished(total, (squares[i] * squares[j]) ** 0.5) for (i, j), total in pairs.items()}


def _finished(total: _Sum, norms: float) -> Similarity:
    weight = total.weight or 1.0
    columns, rows, means = (min(1.0, part / weight) for part in (total.columns, total.rows, total.spaces))
    return Similarity(columns, rows, means, max(-1.0, min(1.0, total.inner / norms)) if norms else 0.0)


def redundant(found: Similarity, agreement: float | None, threshold: float) -> bool:
    """Whether two adapters do the same thing.

    Args:
        agreement: share of equal predictions; None if none were compared.
    """
    same = found.cosine if agreement is None else agreement
    return found.spaces >= threshold and same >= threshold
