"""slao: adapters merged one after another, the t-th with weight 1/√t (time-aware merging of SLAO; Qiao & Mahdavi
2025, arXiv:2512.23017).

Mₜ = Mₜ₋₁ + (ΔWₜ − Mₜ₋₁)/√t. The paper does this to the B's of adapters that were trained with one orthonormal A after
another (the training strategy of the same name); for adapters with different A's the same rule is applied to the ΔW's,
where it is the same as fixed weights and exact. Choose it for a stream of tasks that is merged as it grows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub_cl.merging import BaseMethod, Layer
from adapterhub_cl.merging.ema import running

if TYPE_CHECKING:
    from adapterhub_cl.merging.factors import Factors


class Method(BaseMethod):
    purpose = "a moving average in the order of naming: the t-th adapter has weight 1/√t"
    order_matters = True

    def default_weights(self, count: int) -> list[float]:
        return running([t**-0.5 for t in range(1, count + 1)])

    def layer(self, layer: Layer) -> Factors:
        from adapterhub_cl.merging.factors import stacked

        return stacked(layer.parts, layer.weights)
