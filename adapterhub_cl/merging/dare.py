"""dare: drop entries at random and rescale the rest, then add the updates up (Yu et al. 2024, arXiv:2311.03099).

With fewer entries the updates interfere less; the expectation of the sum is that of `linear`. In the paper 90 % of a
full fine-tuning's entries could be dropped without harm. Truncated to a low rank, what remains of a LoRA is mostly the
noise of the dropping: see the truncation error that merge reports. Choose it with `space=core` or a high density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapterhub_cl.merging._elementwise import Elementwise, SpaceOption, drop_and_rescale, share
from adapterhub_cl.options import option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config(SpaceOption):
    density: float = option(0.7, "share of the entries to keep, chosen at random")

    def __post_init__(self) -> None:
        super().__post_init__()
        share("dare.density", self.density)


class Method(Elementwise):
    purpose = "drops random entries and rescales the rest, then takes the weighted sum"
    Config = Config
    identity_options: ClassVar = {"density": 1.0}
    random = True
    order_matters = True  # the first adapter gets the first draws

    def combine(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return drop_and_rescale(values, self.config.density, generator).sum(0)
