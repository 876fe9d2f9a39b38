"""A merge from stored adapters to factors: layer by layer, so that memory is bounded by the largest layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from adapterhub_cl.errors import AdapterError
from adapterhub_cl.lora_files import LoraFile
from adapterhub_cl.merging import BaseMethod, Layer
from adapterhub_cl.merging.factors import Factors, Truncated, inner, norm, truncate, truncate_dense, zero

NOTHING = 1e-6  # of what went in: below it the sum is rounding


@dataclass(frozen=True)
class Merged:
    """One merged layer.

    Attributes:
        result: at the chosen rank, with the norm of the whole and of what was cut off.
        entered: Σ|wᵢ|·‖ΔWᵢ‖.
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
        found = method.layer(layer)
        entered = sum(max(0.0, inner(part, part)) ** 0.5 for part in layer.weighted if part.rank)
        if isinstance(found, torch.Tensor):
            cut = truncate_dense(found, min(*shape) if rank is None else rank, generator)
        elif rank is None or found.rank <= min(rank, *shape):
            cut = Truncated(found, norm(found), 0.0)
        else:
            cut = truncate(found, min(rank, *shape))
        yield Merged(name, cut, entered)


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
