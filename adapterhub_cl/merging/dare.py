"""dare: drop entries at random and rescale the rest, then add up (Yu et al. 2024, arXiv:2311.03099).

Fewer entries meet, so fewer disturb each other; the expectation of the sum is `linear`'s. In the paper 90 % of a full
fine-tuning's entries could go without harm. Cut to a low rank, what remains of a LoRA is mostly the noise of the
dropping: see the truncation error that the merge reports. Choose it with `space=core` or with a high density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapterhub_cl.merging._elementwise import Elementwise, SpaceOption, drop_and_rescale, share
from adapterhub_cl.options import option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config(SpaceOption):
    """Options of dare."""

    density: float = option(0.7, "share of the entries that stay, at random")

    def __post_init__(self) -> None:
        super().__post_init__()
        share("dare.density", self.density)


class Method(Elementwise):
    """Drop and rescale."""

    purpose = "random entries dropped, the rest rescaled, then the weighted sum"
    Config = Config
    identity_options: ClassVar = {"density": 1.0}
    random = True
    order_matters = True  # the first adapter gets the first draws

    def combine(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return drop_and_rescale(values, self.config.density, generator).sum(0)
