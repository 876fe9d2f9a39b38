"""Strategies: how training on a new task treats the past. One file each, with hooks in the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from adapterhub_cl.options import NoOptions
from adapterhub_cl.plugins import Room
from adapterhub_cl.types import AdapterRecord, Example

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch
    from adapterhub_cl.data.tokenise import Tokens

ROOM = Room("adapterhub_cl.strategies", "strategy", "Strategy", besides=("told_rows",))
DEFAULT = "isolated"
MEMORY = "strategy.safetensors"


@dataclass(frozen=True)
class Past:
    """What the hub had learned before this run.

    Attributes:
        latest: the active latest version of every adapter, in the order in which they were made.
    """

    latest: Sequence[AdapterRecord] = ()

    @property
    def newest(self) -> AdapterRecord | None:
        """The version that was made last."""
        return self.latest[-1] if self.latest else None


@dataclass(frozen=True)
class Origin:
    """Where a row of the past comes from: a task, and the version that stores the example."""

    task: str
    folder: Path | None
    example: Example


@dataclass(frozen=True)
class Trial:
    """What a strategy wants tried before training; see `BaseStrategy.trial`.

    Attributes:
        rows: of the new task on which each version is tried.
        versions: that are tried at most, the newest ones.
        starts: how many of the best are handed over with their weights; the best version with the very same labels is
            too.
    """

    rows: int
    versions: int
    starts: int


@dataclass(frozen=True)
class Kin:
    """A version of another task, or a mixture of several, as a start for the new adapter.

    Attributes:
        parents: version → its weight in ΔW.
        loss: on the rows of the trial, nats a token; on an encoder, of a linear classifier on what it reads off them.
        layers: name of a layer → A `[r, in]` and B `[out, r]` with ΔW = B·A, r at most the new adapter's rank; empty if
            it is not one of the best.
        head: label → its row of an encoder's head and its bias, where the version knows the same labels and its own
            head is better than a new one.
        error: the largest share of a layer's ΔW that was cut off to fit the rank.
        same_labels: whether it is one version, of a choice task with exactly the new task's labels.
    """

    parents: Mapping[str, float]
    loss: float
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)
    head: Mapping[str, tuple[torch.Tensor, float]] = field(default_factory=dict, repr=False)
    error: float = 0.0
    same_labels: bool = False


class Stage(Protocol):
    """A run as a hook sees it, and what it may compute with. Rows are numbered, those of the new task first.

    Attributes:
        model: the base with the LoRA in training, and any frozen ones under it.
        parameters: the LoRA in training by name; nothing else may change. A strategy may freeze some of them in
            `begin` (`requires_grad_(False)`).
        step: optimiser steps done so far.
        steps: steps of the whole run.
        seed: of the run; every random choice must be derived from it.
        resumed: whether a checkpoint will be restored after `begin`, so that initial values need not be computed.
        fresh: the number of rows of the new task: rows 0 to fresh − 1.
        reviewed: old task → its rows, for strategies that read samples.
        origins: for each old row (row − fresh) where it comes from.
        parent: directory of the version that the run continues from or trains on top of; None for a fresh adapter.
        kin: versions of other tasks that were tried on the new task's rows, the best first (see `BaseStrategy.trial`).
        rate: peak learning rate of the run.
        batch: rows of one optimiser step.
        context: the longest input that the base reads, in tokens.
    """

    @property
    def model(self) -> Any: ...
    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def resumed(self) -> bool: ...
    @property
    def fresh(self) -> int: ...
    @property
    def reviewed(self) -> Mapping[str, Sequence[int]]: ...
    @property
    def origins(self) -> Sequence[Origin]: ...
    @property
    def parent(self) -> Path | None: ...
    @property
    def kin(self) -> Sequence[Kin]: ...
    @property
    def rate(self) -> float: ...
    @property
    def batch(self) -> int: ...

    def rate_at(self, step: int, steps: int) -> float:
        """The run's learning rate at step `step` (0 is the first) if it had `steps` steps."""
        ...

    @property
    def context(self) -> int: ...

    def length(self, row: int) -> int:
        """Tokens of a row."""
        ...

    def tokens(self, row: int) -> Tokens:
        """A row as token ids."""
        ...

    def write(self, prompts: Sequence[Sequence[int]], ends: Sequence[int], longest: int) -> list[list[int]]:
        """What the model in training writes after prompts, drawn from its own distribution: token ids, with the one of
        `ends` that ended it. Only for strategies that say `writes`.

        Args:
            ends: ids that end an answer.
            longest: tokens at most.

        Raises:
            UsageError: the base is divided among processes.
        """
        ...

    def batches(self, rows: Sequence[int], *, padding: bool = True) -> Iterator[Batch]:
        """The rows as batches of the run's batch size, in the given order, on the model's device.

        Args:
            padding: False computes them without padding where the run does: faster, with other shapes in the layers.
        """
        ...

    def collate(self, tokens: Sequence[Tokens]) -> Batch:
        """Any tokens as one batch on the model's device; its `indices` count from 0."""
        ...

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits at the positions that count in the loss, `[n, vocabulary]`, fp32, in row order."""
        ...

    def recalled(self) -> Sequence[torch.Tensor] | None:
        """The last output of the heads that the parent had, from `logits` (or from the loop, if it gave a hook its
        logits): `[rows, labels]` each, for its labels only; for raw text over the vocabulary. None if the base has no
        heads: then `logits` is complete."""
        ...

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean loss of the answer tokens, a scalar with a gradient."""
        ...

    def mean_losses(self, rows: Sequence[int]) -> list[float]:
        """Mean loss (nats) of an answer token of each row, without gradient."""
        ...

    def note(self, text: str) -> None:
        """Show the user a line."""
        ...

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[..., None]]:
        """Reports a longer piece of work outside the steps: yields a function to call with each amount of progress."""
        ...


class BaseStrategy:
    """The hooks, in the order in which they are called; by default each does nothing.

    Modules of strategies import torch only inside functions, so that options and their help are available without it.

    Attributes:
        Config: a frozen dataclass of options, each made by `adapterhub_cl.options.option`; users set them with
            `--set NAME.OPTION=VALUE`.
    """

    shares: ClassVar[str] = ""
    """One line for `--help`: what the new adapter shares with the past."""
    form: ClassVar[str] = ""
    """`fresh`: a new adapter; `continued`: continues from the newest one's weights; `stacked`: a new adapter over the
    newest one, which is frozen; empty: decided by the strategy it is combined with, by default `continued`."""
    reads: ClassVar[str] = ""
    """`samples`: the replay samples of earlier tasks are rows of the run; `data`: all their training data are."""
    projects: ClassVar[bool] = False
    """Whether it constrains the direction of gradients: two such strategies cannot be combined."""
    acts_on_past: ClassVar[bool] = True
    """Whether its hooks do something about the past; False if `form` and `reads` are all there is to the strategy. The
    contract tests check it."""
    reads_logits: bool = True
    """Whether `penalty` looks at the logits. False where it does not: then those of long answers are never all in
    memory at once."""
    watches_layers: bool = False
    """Whether it looks at layers by hooks of its own, in `[rows, length, …]`: then rows are padded."""
    writes: bool = False
    """Whether it has the model in training write answers (`Stage.write`): then only a base that writes can be taught
    so, and only by answers, not by preferences or raw text."""
    of_weights: ClassVar[bool] = False
    """Whether what `remember` stores belongs to single weights of the adapter: it is lost where these are replaced by
    others with nearly the same ΔW, as `prune` does."""
    Config: ClassVar[type] = NoOptions

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    @property
    def own_loss(self) -> float:
        """The weight of the rows' own loss; 0 where `penalty` takes its place."""
        return 1.0

    @property
    def trial(self) -> Trial | None:
        """What of the versions that answer for the hub's other tasks is tried on the new task's rows before training;
        `Stage.kin` has the results. None tries nothing."""
        return None

    def repeats(self, tasks: Sequence[str]) -> Sequence[int]:
        """How often each row is trained on in an epoch, at least once.

        Args:
            tasks: each row's task; several only where a strategy reads all tasks' data.
        """
        return [1] * len(tasks)

    def begin(self, stage: Stage) -> None:
        """Called when the model is ready, before the optimiser is built."""

    def review(self, stage: Stage, rows: Sequence[int]) -> Sequence[tuple[int, float]]:
        """Rows of the past to train on in this step too, each with its weight in the loss (1: like a new row)."""
        return ()

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        """Added to the mean loss of each batch, a scalar with a gradient; those of several strategies are summed.

        Args:
            logits: of the model in training at the batch's labelled positions, `[n, vocabulary]`, fp32, in row order;
                empty, `[0, 0]`, if the strategy does not read them.
        """
        return None

    def before_step(self, stage: Stage) -> None:
        """Called when gradients are computed and clipped; they may be changed in place."""

    def after_step(self, stage: Stage) -> None:
        """Called after the optimiser's step; parameters may be changed in place."""

    def end(self, stage: Stage) -> None:
        """Called when the best weights are in the model, before they are saved; parameters may be changed in place."""

    def remember(
        self, stage: Stage, samples: Sequence[Example], tokens: Sequence[Tokens]
    ) -> Mapping[str, torch.Tensor]:
        """What later runs of this strategy need, stored with the version; `memory` reads it back.

        Args:
            samples: the replay samples that will be stored.
            tokens: the same samples as token ids.
        """
        return {}

    def start(self) -> Mapping[str, Any]:
        """What came of `Stage.kin`, as plain JSON for the manifest; empty if nothing was tried.

        `from`: the versions whose ΔW the adapter started from, with their weights; empty if it started fresh. `best`:
        the same of the best start. `kin` and `fresh`: losses from that start and from a fresh one on `rows` rows, after
        `steps` steps. `tried`: a list.
        """
        return {}

    def summary(self) -> dict[str, Any]:
        """What it did, as plain JSON, for `training.json`."""
        return {}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a checkpoint needs so that a resumed run equals an uninterrupted one."""
        return {}, {}

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """The reverse of `state`; called after `begin`."""


def memory(folder: Path | None, name: str) -> dict[str, torch.Tensor]:
    """What a strategy stored with a version; empty if it stored nothing.

    Raises:
        IntegrityError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    from adapterhub_cl.errors import IntegrityError

    if folder is None or not (folder / MEMORY).is_file():
        return {}
    try:
        with safe_open(folder / MEMORY, framework="pt") as file:
            mine = [key for key in file.keys() if key.startswith(name + ".")]  # noqa: SIM118 (not a dict)
            return {key.removeprefix(name + "."): file.get_tensor(key) for key in mine}
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder / MEMORY} cannot be read: {error}", "run cl-adapter verify") from error


# `_combined` needs the classes above.
from adapterhub_cl.strategies._combined import Combined as Combined  # noqa: E402
from adapterhub_cl.strategies._combined import build as build  # noqa: E402
