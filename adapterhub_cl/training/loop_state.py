"""The training loop's input, its state and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import BaseStrategy, Kin, Origin, Stage


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        weights: the best epoch's parameters, by name; on the CPU.
        epoch: which epoch that was, from 1.
        history: one row an epoch: loss, dev figures, seconds.
        examples_per_second: training only, without evaluation.
        tokens: that were trained on, all epochs together; replayed ones count each time.
    """

    weights: Mapping[str, torch.Tensor]
    epoch: int
    history: Sequence[Mapping[str, float]]
    steps: int
    examples_per_second: float
    tokens_per_second: float
    tokens: int


@dataclass
class Progress:
    """The state of a run; all of it goes into each checkpoint."""

    epoch: int = 0
    step_in_epoch: int = 0
    steps: int = 0
    processes: int = 0  # that began the run: a step has the rows of all of them, whoever goes on with it
    rows: int = 0  # rows in one micro-batch; halved when memory runs out
    again: bool = False  # whether memory ran out with one row, and layers are computed twice since
    first_loss: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    best_score: list[float] = field(default_factory=list)
    best_epoch: int = 0
    epochs_without_gain: int = 0
    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class LoopWatch(Protocol):
    """Looks on while a loop trains. It may raise to end the training, and must leave the model and the random state as
    they are."""

    def begin(self, stage: Stage) -> None:
        """Called with the model as the training finds it, before a checkpoint is restored."""
        ...

    def after_step(self, stage: Stage) -> None:
        """Called after each step."""
        ...


@dataclass(frozen=True)
class LoopOrder:
    """What the loop trains, on which rows and how.

    Attributes:
        examples: the training set as token ids.
        rate: peak learning rate.
        pad_id: the token that fills a batch's shorter rows.
        dtype: type of the matrix products (autocast).
        past: rows of earlier tasks, which the strategy may review; `origins` says where each comes from.
        parent: directory of the version that the run continues from or stands on.
        prompt_loss: weight of the prompt's tokens in the loss.
        alike: whether the examples are of one kind, so that the first batch's loss can stand for all at the start.
        run: folder for checkpoints; None keeps none.
        rows: rows in memory at once; 0: a batch.
        kin: versions of other tasks that were tried on the rows, the best first.
        watch: looks on; None: nobody does.
        padding: False computes rows without padding, which the model's attention must have been set for.
    """

    objective: BaseObjective
    strategy: BaseStrategy
    settings: TrainingSettings
    examples: Sequence[Tokens]
    rate: float
    pad_id: int
    dtype: torch.dtype
    past: Sequence[Tokens] = ()
    origins: Sequence[Origin] = ()
    parent: Path | None = None
    prompt_loss: float = 0.0
    alike: bool = True
    run: Path | None = None
    padding: bool = True
    rows: int = 0
    kin: Sequence[Kin] = ()
    watch: LoopWatch | None = None
