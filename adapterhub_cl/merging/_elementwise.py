"""Shared by the elementwise methods: the space in which they work, and their common steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapterhub_cl.errors import UsageError
from adapterhub_cl.merging import BaseMethod, Layer
from adapterhub_cl.options import option

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.merging.factors import Factors

SPACES = ("dense", "core")


@dataclass(frozen=True)
class SpaceOption:
    """The option that all elementwise methods have."""

    space: str = option(
        "dense", "dense: the entries of ΔW, one layer at a time; core: its coordinates in the space of all factors"
    )

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise UsageError(
                f"space must be dense or core, not {self.space!r}", "core is cheaper: --set METHOD.space=core"
            )


class Elementwise(BaseMethod):
    """A method on the entries of the updates.

    In core space (Panariello et al. 2025, arXiv:2509.17786) the same operation runs on the Σr×Σr coordinates of the
    updates in the singular bases of all factors: nothing is truncated, and no out×in matrix is formed.
    """

    Config = SpaceOption
    dense: ClassVar[bool] = True

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        if self.config.space == "core":
            self.dense = False  # type: ignore[misc]  # the result stays within the factors' space

    def layer(self, layer: Layer) -> Factors | torch.Tensor:
        import torch

        from adapterhub_cl.merging.factors import core

        if self.config.space == "core":
            shared = core(layer.weighted, aligned=True)
            values = torch.stack([c.float() for c in shared.cores])
            return shared.factors(self.combine(values, layer.generator))
        return self.combine(torch.stack([part.dense() for part in layer.weighted]), layer.generator)

    def combine(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Weighted updates `[n_adapters, rows, columns]` → the merged one `[rows, columns]`; may change them in
        place."""
        raise NotImplementedError


def share(name: str, value: float, *, least: float = 0.0) -> None:
    """Raise UsageError unless least < value ≤ 1."""
    if not least < value <= 1:
        raise UsageError(f"{name} must be above {least:g} and at most 1, not {value:g}", f"--set {name}=0.5")


def trim(values: torch.Tensor, density: float) -> torch.Tensor:
    """Keep this share of each update's entries, the largest by magnitude; the others become 0. `[n, rows, columns]`."""
    entries = values[0].numel()
    count = max(1, round(density * entries))
    if count < entries:
        for value in values:  # one at a time, in place: each may be hundreds of megabytes
            sizes = value.abs()
            value.mul_(sizes >= sizes.flatten().kthvalue(entries - count + 1).values)
    return values


def agreeing_mean(values: torch.Tensor) -> torch.Tensor:
    """For each entry elect the sign with the greater total, and average the updates that have it (TIES)."""
    elected = values.sum(0).sign()
    total = values[0].new_zeros(values[0].shape)
    votes = total.clone()
    for value in values:
        agree = (value.sign() == elected) & (value != 0)
        total.addcmul_(value, agree.to(value.dtype))
        votes += agree
    return total.div_(votes.clamp_(min=1))


def drop_and_rescale(values: torch.Tensor, keep: torch.Tensor | float, generator: torch.Generator) -> torch.Tensor:
    """Keep each entry with probability `keep` and divide it by that, so that the expectation is unchanged (DARE)."""
    import torch

    chance = torch.rand(values.shape, generator=generator)
    return values * (chance < keep) / keep
