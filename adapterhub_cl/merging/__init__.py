"""Merging: several adapters become one, layer by layer, on their factors. One file per merge method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from adapterhub_cl.options import from_mapping
from adapterhub_cl.plugins import Room

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch
    from adapterhub_cl.merging.factors import Factors, Truncated

ROOM = Room("adapterhub_cl.merging", "merge method", "Method", besides=("factors",))
DEFAULT = "linear"


@dataclass(frozen=True)
class NoOptions:
    """A method without options."""


@dataclass(frozen=True)
class Layer:
    """What a method sees of one layer.

    Attributes:
        name: as the base has it.
        parts: each adapter's ΔW, in the order in which they were named; rank 0 where one leaves the layer alone.
        weights: what each counts.
        generator: for random choices; its seed follows from the merge's seed and the layer's place.
    """

    name: str
    parts: Sequence[Factors]
    weights: Sequence[float]
    generator: torch.Generator

    @property
    def weighted(self) -> list[Factors]:
        """wᵢ·ΔWᵢ."""
        from adapterhub_cl.merging.factors import scaled

        return [scaled(part, weight) for part, weight in zip(self.parts, self.weights, strict=True)]


class Stage(Protocol):
    """What methods that look at replay samples may compute with; the base is frozen.

    Attributes:
        layers: layer → each adapter's ΔW; read from the files when a layer is asked for.
        seed: of the merge.
    """

    @property
    def layers(self) -> Mapping[str, Sequence[Factors]]: ...
    @property
    def seed(self) -> int: ...

    def batches(self, adapter: int) -> Sequence[Batch]:
        """The replay samples of the tasks that an adapter answers for, on the model's device."""
        ...

    def attached(
        self,
        parts: Mapping[str, Factors],
        gates: Mapping[str, torch.Tensor] | None = None,
        see: Callable[[str, torch.Tensor], None] | None = None,
    ) -> AbstractContextManager[None]:
        """Within the block the base answers with these updates.

        Args:
            parts: layer → ΔW.
            gates: layer → `[r]`: what each of the ΔW's ranks is multiplied with; may carry a gradient.
            see: called with each layer's name and input `[tokens, in]` of real tokens.
        """
        ...

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean loss of the batch's answer tokens, with the gradient of the gates."""
        ...

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Tells the user how far a piece of work is."""
        ...


class BaseMethod:
    """A merge method. Modules import torch within functions only, so that names and options are known without it.

    Attributes:
        purpose: one line for `--help`.
        dense: the result is not confined to the space that the factors span: any rank may be asked for.
        reads: `samples` where the method needs the base and the parents' replay samples; `prepare` is called then.
        Config: a frozen dataclass of options, each made by `adapterhub_cl.options.option`.

    The following say how the method behaves. The contract tests read them, and check that they are true.

    Attributes:
        identity_options: options under which one adapter at weight 1 is kept as it is; None where there are none.
        identity_error: the largest relative error of that, in the Frobenius norm.
        order_matters: the result depends on the order in which the adapters are named.
        random: the result depends on the seed, by `Layer.generator` or `Stage.seed`.
        opposites_cancel: an adapter and its exact opposite, under `identity_options`, give zero.
    """

    purpose: ClassVar[str] = ""
    dense: ClassVar[bool] = False
    reads: ClassVar[str] = ""
    Config: ClassVar[type] = NoOptions
    identity_options: ClassVar[Mapping[str, Any] | None] = {}
    identity_error: ClassVar[float] = 1e-5
    order_matters: ClassVar[bool] = False
    random: ClassVar[bool] = False
    opposites_cancel: ClassVar[bool] = True

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    def default_weights(self, count: int) -> list[float]:
        """What each of `count` adapters counts where the user does not say: an equal share of the whole."""
        return [1.0 / count] * count

    def default_rank(self, ranks: Sequence[int]) -> int:
        """The rank of the result where the user does not say, from the parents' largest ranks: all of them, added."""
        return sum(ranks)

    def prepare(self, stage: Stage) -> None:
        """Look at replay samples, before the first layer."""

    def layer(self, layer: Layer) -> Factors | Truncated | torch.Tensor:
        """The merged ΔW of a layer: as factors of any rank, cut by the method itself, or dense `[out, in]`."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """What it found out, as plain JSON, for `recipe.json`."""
        return {}


def build(name: str, options: Mapping[str, Any]) -> BaseMethod:
    """A method with its options.

    Args:
        options: `NAME.OPTION` or `OPTION` → value.

    Raises:
        UnknownNameError: no such method or option.
        UsageError: an option's value cannot be used.
    """
    from adapterhub_cl.errors import UnknownNameError, UsageError

    found: type[BaseMethod] = ROOM.get(name)
    plain = ROOM.canonical(name)
    own: dict[str, Any] = {}
    for key, value in options.items():
        owner, dot, option = key.rpartition(".")
        if dot and ROOM.canonical(owner) != plain:
            if ROOM.canonical(owner) in ROOM.names():
                raise UsageError(f"--set {key}: the method is {plain}", f"add --method {ROOM.canonical(owner)}")
            raise UnknownNameError(f"option of {plain}", key, [f"{plain}.{f.name}" for f in fields(found.Config)])
        own[option] = value
    return found(from_mapping(found.Config, own, f"the options of {plain}", prefix=f"{plain}."))
