"""iso: the sum of the updates with all its singular values made equal (Iso-C; Marczak et al. 2025, arXiv:2502.04959).

A few strong directions, shared by some tasks, dominate the others; a flat spectrum gives each direction equal
influence. In the paper it is ahead of TSV-Merge on eight to twenty vision tasks, with a scale that is tuned on held-out
data; here that is `iso.scale`, 1 by default. Only the directions that remain at the chosen rank count. Choose it for
many tasks; with two or three it discards the information in the strengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub_cl.errors import UsageError
from adapterhub_cl.merging import BaseMethod, Layer
from adapterhub_cl.options import option

if TYPE_CHECKING:
    from adapterhub_cl.merging.factors import Factors


@dataclass(frozen=True)
class Config:
    scale: float = option(1.0, "factor for the merged update; the paper tunes it on held-out data")

    def __post_init__(self) -> None:
        if not 0 < self.scale < 100:
            raise UsageError(f"iso.scale must be above 0 and below 100, not {self.scale:g}", "1 is usual")


class Method(BaseMethod):
    purpose = "the sum with equal singular values"
    Config = Config
    identity_options = None  # even one update's singular values are made equal

    def default_weights(self, count: int) -> list[float]:
        return [1.0] * count

    def layer(self, layer: Layer) -> Factors:
        from adapterhub_cl.merging.factors import Factors, decompose, stacked

        u, s, v = decompose(stacked(layer.weighted))
        if not len(s) or s[0] == 0:
            return Factors(u[:, :0], v[:, :0].T)
        there = int((s > 1e-6 * s[0]).sum())  # smaller directions are rounding errors
        level = float(s[:there].mean()) * self.config.scale
        return Factors(u[:, :there] * level, v[:, :there].T.contiguous())
