"""A merge from stored adapters to factors: layer by layer, so that memory is bounded by the largest layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.errors import AdapterError
from adapterhub_cl.merging import BaseMethod, Layer
from adapterhub_cl.merging.factors import Factors, Truncated, norm, truncate, truncate_dense, zero

NOTHING = 3e-7  # of what went in: below it the sum is rounding
LARGEST = 1e15  # norm of an update; fp32 would overflow in its squares


@dataclass(frozen=True)
class Merged:
    """One merged layer.

    Attributes:
        result: at the chosen rank, with the norm of the whole and of what was cut off.
        entered: Σ|wᵢ|·‖Bᵢ‖·‖Aᵢ‖, at least the norm of all that went in.
    """

    name: str
    result: Truncated
    entered: float


def shapes_of(adapters: Sequence[LoraFile]) -> dict[str, tuple[int, int]]:
    """Layer → (out, in), of all layers that any of the adapters changes, in their order.

    Raises:
        AdapterError: two adapters have a layer in two shapes: they are of different bases.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for name in adapter.modules:
            if shapes.setdefault(name, adapter.shapes[name]) != adapter.shapes[name]:
                raise AdapterError(
                    f"the adapters are of different bases: {name} is {shapes[name]} in {adapters[0].folder} and "
                    f"{adapter.shapes[name]} in {adapter.folder}",
                    "only adapters of one base can be merged",
                )
    return shapes


def parts_of(adapters: Sequence[LoraFile], name: str, shape: tuple[int, int]) -> list[Factors]:
    """Each adapter's ΔW of a layer; zero, at rank 0, where it leaves the layer alone."""
    return [Factors(*adapter.factors(name)) if adapter.rank(name) else zero(*shape) for adapter in adapters]


def layers_of(
    adapters: Sequence[LoraFile], weights: Sequence[float], method: BaseMethod, rank: int | None, seed: int
) -> Iterator[Merged]:
    """Merge, one layer after another.

    Args:
        rank: highest rank of a layer of the result; None keeps what the method gives.

    Raises:
        AdapterError, IntegrityError: the adapters are of different bases, or a file cannot be read.
    """
    for k, (name, shape) in enumerate(shapes_of(adapters).items()):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + k)
        layer = Layer(name, parts_of(adapters, name, shape), weights, generator)
        entered = sum(
            abs(weight) * float(part.b.norm() * part.a.norm())
            for part, weight in zip(layer.parts, weights, strict=True)
        )
        if not entered <= LARGEST:
            raise AdapterError(
                f"the updates of {name} are too large to be computed with (norm {entered:.3g})",
                "a smaller weight, or another adapter: numbers of this size come from a training run that failed",
            )
        try:
            yield Merged(name, _cut(method.layer(layer), rank, shape, generator), entered)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise AdapterError(f"{name} cannot be decomposed: {error}", "look at the adapters' numbers") from error


def _cut(
    found: Factors | Truncated | torch.Tensor, rank: int | None, shape: tuple[int, int], generator: torch.Generator
) -> Truncated:
    """What a method gave, at the chosen rank."""
    most = min(*shape) if rank is None else min(rank, *shape)
    if isinstance(found, torch.Tensor):
        return truncate_dense(found, most, generator)
    if isinstance(found, Truncated):  # what is cut off here was orthogonal to what the method cut off
        again = truncate(found.factors, most)
        return Truncated(again.factors, found.norm, math.hypot(found.lost, again.lost))
    if rank is None or found.rank <= most:
        return Truncated(found, norm(found), 0.0)
    return truncate(found, most)


def refuse_nothing(layers: Sequence[Merged]) -> None:
    """Raise AdapterError where the updates cancel out: such an adapter would be the base."""
    entered = sum(layer.entered for layer in layers)
    left = sum(layer.result.norm**2 for layer in layers) ** 0.5
    if left <= NOTHING * entered or not left:
        raise AdapterError(
            "the result is zero: the adapters cancel each other out, and the base alone would answer",
            "change the weights or the expression",
        )


def total_error(layers: Sequence[Merged]) -> float:
    """‖ΔW − ΔW_r‖ ÷ ‖ΔW‖ over all layers together."""
    whole = sum(layer.result.norm**2 for layer in layers)
    return float((sum(layer.result.lost**2 for layer in layers) / whole) ** 0.5) if whole else 0.0
