"""linear: Σ wᵢ·ΔWᵢ, exactly (task arithmetic; Ilharco et al. 2023, arXiv:2212.04089).

The factors are stacked, so the sum costs nothing and loses nothing; with `--rank` it is truncated to the best
approximation of that rank. (Adding up A's and B's separately, as PEFT's `linear` does, gives another matrix.)
Choose it first: it is the reference for every other method, and the start of a distillation. It cannot keep updates
that point in opposite directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub_cl.merging import BaseMethod, Layer

if TYPE_CHECKING:
    from adapterhub_cl.merging.factors import Factors


class Method(BaseMethod):
    purpose = "the exact weighted sum; the reference for every other method"

    def layer(self, layer: Layer) -> Factors:
        from adapterhub_cl.merging.factors import stacked

        return stacked(layer.parts, layer.weights)
