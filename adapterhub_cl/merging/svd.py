"""svd: Σ wᵢ·ΔWᵢ at the best approximation of a given rank, or of the smallest rank with a given share of its energy.

Uses QR of both stacks and the SVD of their Σr×Σr core, so no out×in matrix: the same result as PEFT's `svd`, which
decomposes ΔW itself. Choose it if the merged adapter must not be larger than its parents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub_cl.merging import BaseMethod, Layer
from adapterhub_cl.merging._elementwise import share
from adapterhub_cl.options import option

if TYPE_CHECKING:
    from adapterhub_cl.merging.factors import Factors, Truncated


@dataclass(frozen=True)
class Config:
    energy: float = option(1.0, "share of ‖ΔW‖² to keep in each layer, at the smallest such rank; 1: use only --rank")

    def __post_init__(self) -> None:
        share("svd.energy", self.energy)


class Method(BaseMethod):
    purpose = "the weighted sum at its best approximation of a rank (default: the largest parent's)"
    Config = Config

    def default_rank(self, ranks: Sequence[int]) -> int:
        return max(ranks) if self.config.energy == 1 else sum(ranks)

    def layer(self, layer: Layer) -> Factors | Truncated:
        from adapterhub_cl.merging.factors import rank_for_energy, singular_values, stacked, truncate

        whole = stacked(layer.parts, layer.weights)
        if self.config.energy == 1:
            return whole
        return truncate(whole, rank_for_energy(singular_values(whole), self.config.energy))
