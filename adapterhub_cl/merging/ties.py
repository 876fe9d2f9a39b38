"""ties: trim, elect a sign, average those that agree (Yadav et al. 2023, arXiv:2306.01708).

The largest entries of each update are kept, for each entry the sign with more weight wins, and the updates that have
it are averaged. In the paper it is ahead of averaging and task arithmetic for full models and for (IA)³, without data
or training; on LoRA updates of few tasks it gains little over `linear` (docs/consolidation.md). It costs a dense ΔW of
each adapter, one layer at a time, or little with `space=core`. Choose it for many similar adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapterhub_cl.merging._elementwise import Elementwise, SpaceOption, agreeing_mean, share, trim
from adapterhub_cl.options import option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config(SpaceOption):
    density: float = option(0.5, "share of each update's entries to keep, the largest")

    def __post_init__(self) -> None:
        super().__post_init__()
        share("ties.density", self.density)


class Method(Elementwise):
    purpose = "keeps the largest entries, and averages them over the adapters that agree on the sign"
    Config = Config
    identity_options: ClassVar = {"density": 1.0}

    def default_weights(self, count: int) -> list[float]:
        return [1.0] * count  # the method itself takes a mean

    def combine(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return agreeing_mean(trim(values, self.config.density))
