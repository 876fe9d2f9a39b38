"""della: drop the smaller entries more often than the larger, elect signs, average (Deep et al. 2024,
arXiv:2406.11617).

Within each row of an update the entries are ranked by magnitude; the chance of being kept rises with the rank, around
`density`, by `spread` from the smallest to the largest. In the paper it is 1 to 4 points ahead of DARE and TIES on
merges of two to three full models. Choose it in place of `dare_ties`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapterhub_cl.errors import UsageError
from adapterhub_cl.merging._elementwise import Elementwise, SpaceOption, agreeing_mean, drop_and_rescale, share
from adapterhub_cl.options import option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config(SpaceOption):
    density: float = option(0.7, "mean share of the entries to keep")
    spread: float = option(0.2, "how much more likely the largest entry of a row is kept than the smallest")

    def __post_init__(self) -> None:
        super().__post_init__()
        share("della.density", self.density)
        if not 0 <= self.spread / 2 <= min(1 - self.density, self.density - 0.01):
            raise UsageError(
                f"della.spread {self.spread:g} around a density of {self.density:g} leaves the range 0 to 1",
                "use at most twice the distance of the density from 0 and from 1",
            )


def keep_chances(values: torch.Tensor, density: float, spread: float) -> torch.Tensor:
    """The probability of keeping each entry, `[n, rows, columns]`: linear in its rank by magnitude within its row."""
    import torch

    columns = values.shape[-1]
    ranks = values.abs().argsort(-1).argsort(-1).to(torch.float32)
    return density + spread * (ranks / max(1, columns - 1) - 0.5)


class Method(Elementwise):
    purpose = "like dare_ties, but drops smaller entries more often"
    Config = Config
    identity_options: ClassVar = {"density": 1.0, "spread": 0.0}
    random = True
    order_matters = True

    def default_weights(self, count: int) -> list[float]:
        return [1.0] * count

    def combine(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        keep = keep_chances(values, self.config.density, self.config.spread)
        return agreeing_mean(drop_and_rescale(values, keep, generator))
