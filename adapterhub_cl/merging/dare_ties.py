"""dare_ties: DARE's random dropping, then TIES' election of signs (Yu et al. 2024, arXiv:2311.03099, section 4).

The usual choice for merging full models; on LoRA updates the dropping adds noise that a low rank cannot represent
(see `dare`). Choose it like `ties`, if the parents' largest entries collide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapterhub_cl.merging._elementwise import Elementwise, SpaceOption, agreeing_mean, drop_and_rescale, share
from adapterhub_cl.options import option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config(SpaceOption):
    density: float = option(0.7, "share of the entries to keep, chosen at random")

    def __post_init__(self) -> None:
        super().__post_init__()
        share("dare_ties.density", self.density)


class Method(Elementwise):
    purpose = "drops random entries, then averages the rest over the adapters that agree on the sign"
    Config = Config
    identity_options: ClassVar = {"density": 1.0}
    random = True
    order_matters = True

    def default_weights(self, count: int) -> list[float]:
        return [1.0] * count

    def combine(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return agreeing_mean(drop_and_rescale(values, self.config.density, generator))
