"""Merging: several adapters become one, computed layer by layer on their factors. One file per merge method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from adapterhub_cl.options import NoOptions, from_mapping
from adapterhub_cl.plugins import Room

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch
    from adapterhub_cl.merging.factors import Factors, Truncated

ROOM = Room("adapterhub_cl.merging", "merge method", "Method", besides=("factors",))
DEFAULT = "linear"


@dataclass(frozen=True)
class Layer:
    """One layer, as a method sees it.

    Attributes:
        name: its name in the base.
        parts: each adapter's ΔW, in the order in which they were named; rank 0 if an adapter does not change the layer.
        weights: the weight of each.
        generator: for random choices; its seed depends on the merge's seed and the layer's position.
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
    """What methods that use replay samples may compute with; the base is frozen.

    Attributes:
        layers: layer → each adapter's ΔW; read from the files on demand.
        seed: of the merge.
    """

    @property
    def layers(self) -> Mapping[str, Sequence[Factors]]: ...
    @property
    def seed(self) -> int: ...

    def batches(self, adapter: int) -> Sequence[Batch]:
        """The replay samples of the tasks that an adapter answers, on the model's device."""
        ...

    def attached(
        self,
        parts: Mapping[str, Factors],
        gates: Mapping[str, torch.Tensor] | None = None,
        see: Callable[[str, torch.Tensor], None] | None = None,
    ) -> AbstractContextManager[None]:
        """Inside the block the base answers with these updates.

        Args:
            parts: layer → ΔW.
            gates: layer → `[r]`: factors for each of the ΔW's ranks; may have a gradient.
            see: called with each layer's name and its input `[tokens, in]`, without padding.
        """
        ...

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean loss of the batch's answer tokens, with gradients for the gates."""
        ...

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Reports the progress of a step to the user."""
        ...


class BaseMethod:
    """A merge method. Modules import torch only inside functions, so that names and options are available without it.

    Attributes:
        purpose: one line for `--help`.
        dense: whether the result can leave the space that the factors span, so that any rank may be requested.
        reads: `samples` if the method needs the base and the parents' replay samples; then `prepare` is called.
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
    asked_rank: int | None = None
    """The rank that the user wants the result to have, known before the first layer; None: `default_rank`."""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    def default_weights(self, count: int) -> list[float]:
        """The weights of `count` adapters unless the user sets them: equal shares."""
        return [1.0 / count] * count

    def default_rank(self, ranks: Sequence[int]) -> int:
        """The rank of the result unless the user sets it: the sum of the parents' largest ranks."""
        return sum(ranks)

    def prepare(self, stage: Stage) -> None:
        """Process the replay samples, before the first layer."""

    def layer(self, layer: Layer) -> Factors | Truncated | torch.Tensor:
        """The merged ΔW of a layer: as factors of any rank, truncated by the method itself, or dense `[out, in]`."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Results to record in `recipe.json`, as plain JSON."""
        return {}


def build(name: str, options: Mapping[str, Any]) -> BaseMethod:
    """Create a method with its options.

    Args:
        options: `NAME.OPTION` or `OPTION` → value.

    Raises:
        UnknownNameError: no such method or option.
        UsageError: an option has an invalid value.
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
