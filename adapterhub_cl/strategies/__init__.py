"""Strategies: how training on a new task treats the past. One file each; hooks in the one training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from adapterhub_cl.plugins import Room
from adapterhub_cl.types import AdapterRecord

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch

ROOM = Room("adapterhub_cl.strategies", "strategy", "Strategy")
DEFAULT = "isolated"


@dataclass(frozen=True)
class Past:
    """What the hub had learned before this run.

    Attributes:
        latest: the active latest version of every adapter, in the order in which they were made.
    """

    latest: Sequence[AdapterRecord] = ()


@dataclass(frozen=True)
class Stage:
    """What a hook sees.

    Attributes:
        model: the base with the LoRA in training.
        parameters: the trainable parameters by name; nothing else may change.
        step: steps done so far.
        steps: steps of the whole run.
    """

    model: Any
    parameters: Mapping[str, torch.nn.Parameter]
    step: int
    steps: int


class BaseStrategy:
    """The hooks, in the order in which they are called; each does nothing unless a strategy says otherwise."""

    shares: ClassVar[str] = ""
    """One line for `--help`: what the new adapter shares with the past."""

    def starts_from(self, past: Past) -> AdapterRecord | None:
        """The version whose weights the new adapter starts from; None for a fresh one."""
        return None

    def begin(self, stage: Stage) -> None:
        """The model is ready; no optimiser yet."""

    def penalty(self, stage: Stage, batch: Batch) -> torch.Tensor | None:
        """Added to the loss of each batch, a scalar with a gradient; losses of several strategies add up."""
        return None

    def before_step(self, stage: Stage) -> None:
        """Gradients are there and clipped; they may be changed in place."""

    def after_step(self, stage: Stage) -> None:
        """The optimiser has stepped; parameters may be changed in place."""

    def end(self, stage: Stage) -> None:
        """The best weights are in the model; they are saved next."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a checkpoint must hold so that a resumed run equals an uninterrupted one."""
        return {}, {}

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
