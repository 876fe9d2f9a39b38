"""ema: an exponential moving average over the adapters in the order in which they are named.

Mₜ = (1 − β)·Mₜ₋₁ + β·ΔWₜ, from M₁ = ΔW₁: the last adapters have the most weight. This is the same as fixed weights, so
the result is exact. Choose it for versions of one task, or a stream whose latest tasks matter most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub_cl.merging import BaseMethod, Layer
from adapterhub_cl.merging._elementwise import share
from adapterhub_cl.options import option

if TYPE_CHECKING:
    from adapterhub_cl.merging.factors import Factors


@dataclass(frozen=True)
class Config:
    beta: float = option(0.5, "weight of a new adapter relative to all before it")

    def __post_init__(self) -> None:
        share("ema.beta", self.beta)


def running(shares: list[float]) -> list[float]:
    """The fixed weights that Mₜ = (1 − sₜ)·Mₜ₋₁ + sₜ·ΔWₜ is equal to; the first share is 1."""
    weights: list[float] = []
    for share_ in shares:
        weights = [*((1 - share_) * weight for weight in weights), share_]
    return weights


class Method(BaseMethod):
    purpose = "a moving average in the order of naming: the last adapter has the most weight"
    Config = Config
    order_matters = True

    def default_weights(self, count: int) -> list[float]:
        return running([1.0] + [self.config.beta] * (count - 1))

    def layer(self, layer: Layer) -> Factors:
        from adapterhub_cl.merging.factors import stacked

        return stacked(layer.parts, layer.weights)
