"""linear: Σ wᵢ·ΔWᵢ, exactly (task arithmetic; Ilharco et al. 2023, arXiv:2212.04089).

The factors are stacked, so the sum costs nothing and loses nothing; with `--rank` it is cut to the best approximation
of that rank. (Adding up A's and B's apart, as PEFT's `linear` does, is another matrix.) Choose it first: it is the
reference of every other method, and the start of a distillation. What it cannot do is keep updates that point against
each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub_cl.merging import BaseMethod, Layer

if TYPE_CHECKING:
    from adapterhub_cl.merging.factors import Factors


class Method(BaseMethod):
    """The weighted sum."""

    purpose = "the exact weighted sum; every other method's reference"

    def layer(self, layer: Layer) -> Factors:
        from adapterhub_cl.merging.factors import stacked

        return stacked(layer.parts, layer.weights)
