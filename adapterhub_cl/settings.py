"""The settings of a training run: one dataclass, help and unit per field, all errors reported together. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.options import flag, from_mapping, option

LARGEST_SEED = 2**32 - 1
ATTENTIONS = ("auto", "sdpa", "eager")
SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([kmgt]?)(i?)b?", re.ASCII | re.IGNORECASE)
LEARNED = ("all", "last")
EPOCHS, BATCH = 3, 16
# A new adapter that has few rows of a choice task: the most passes over them, and the steps for which they are meant.
# An encoder's head begins from nothing. (docs/choosing-settings.md)
FEW_ROWS, FEW_ROWS_ENCODER = (6, 64), (12, 96)
# A new adapter that has few rows with free answers: its smallest batch, and the steps for which the batch is halved.
FEW_FREE = (4, 64)
RSLORA_ALPHA = 8.0
SCHEDULES = ("cosine", "linear", "constant")
INITS = ("default", "gaussian", "orthogonal")


def check_seed(seed: int) -> None:
    """Raise where a seed is out of range.

    Raises:
        UsageError: names the range.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"--seed must be between 0 and {LARGEST_SEED}, not {seed}", "--seed 0")


@dataclass(frozen=True)
class TrainingSettings:
    """How an adapter is trained. Every field is a flag of `add-task` and `update` (`learning_rate` → `--learning-rate`)
    and a key of `--config FILE`."""

    epochs: int | None = option(
        None,
        f"passes over the data; default: {EPOCHS}, or up to {FEW_ROWS[0]} ({FEW_ROWS_ENCODER[0]} on an encoder) where "
        "a new adapter learns a choice task from few rows",
    )
    batch_size: int | None = option(
        None,
        f"examples in one step of one process; default: {BATCH}, or down to {FEW_FREE[0]} where a new adapter learns "
        "few rows with free answers",
    )
    accumulation: int = option(1, "batches whose gradients are added up before a step")
    learning_rate: float | None = option(None, "peak of AdamW's learning rate; default: chosen from the base's width")
    schedule: str = option("cosine", "how the learning rate falls after its warm-up: cosine, linear, constant")
    warmup: float = option(0.05, "share of all steps in which the learning rate rises")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    clip: float = option(1.0, "largest norm of the gradient; 0 does not clip")
    rank: int = option(16, "rank of the adapter")
    alpha: float | None = option(None, "LoRA's alpha; default: twice the rank, 8 with --rslora")
    dropout: float = option(0.0, "LoRA's dropout, 0 to 1")
    target_modules: str = option(
        "all-linear", "which linear layers get LoRA: all-linear, or names with commas between", joins=True
    )
    layers: str = option(
        "", "which of the base's layers get LoRA, counted from 0: 8-15 or 0,2,4; default: all", joins=True
    )
    rslora: bool = option(False, "scale by alpha/sqrt(rank) (rank-stabilised LoRA)")
    dora: bool = option(False, "weight-decomposed LoRA (DoRA)")
    init: str = option(
        "default", "the first values of a fresh adapter: default (B is zero), gaussian (likewise), or orthogonal"
    )
    loraplus_ratio: float = option(1.0, "LoRA+: learning rate of the B matrices divided by that of the A matrices")
    max_length: int = option(512, "longest example in tokens; longer passages and conversations are cut")
    attention: str = option("auto", "auto measures which is fastest here, with rows padded or not; or sdpa, or eager")
    checkpointing: str = option(
        "auto", "which layers are computed twice to save memory: auto as memory needs it, off, or N for every N-th"
    )
    memory: str = option("", "the most memory to use, e.g. 10GB; default: 90 % of what is free")
    dev_share: float = option(0.1, "share of the training data (200 rows at most) held out to choose the best epoch")
    patience: int = option(0, "stop after this many epochs without a better one; 0 never stops early")
    checkpoint_every: int = option(100, "steps between checkpoints for --resume")
    seed: int = option(0, "seed of every random choice", stream=False)
    learn: str = option("all", "which answers of a conversation are learned: all of the assistant's, or the last one")
    prompt_loss: float | None = option(
        None, "weight of the prompt's tokens in the loss beside the answer's; default: 0, 0.25 with --replay generated"
    )
    beta: float = option(
        0.1, "preference data: how far the model may move from its reference; a higher value keeps it closer"
    )
    desirable_weight: float = option(1.0, "kto: weight of the answers that are wanted in the loss")
    undesirable_weight: float = option(1.0, "kto: weight of the answers that are not wanted in the loss")

    def __post_init__(self) -> None:
        problems = [text for wrong, text in self._checks() if wrong]
        if len(problems) == 1 and self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        if problems:
            raise UsageError("; ".join(problems), "cl-adapter add-task --help lists the settings")

    def _checks(self) -> list[tuple[bool, str]]:
        def below(name: str, least: float) -> tuple[bool, str]:
            value = getattr(self, name)
            return (
                value is not None and not least <= value < math.inf,
                f"{flag(name)} must be at least {least}, not {value}",
            )

        def positive(name: str) -> tuple[bool, str]:
            value = getattr(self, name)
            return value is not None and not 0 < value < math.inf, f"{flag(name)} must be above 0, not {value}"

        def share(name: str) -> tuple[bool, str]:
            value = getattr(self, name)
            return not 0 <= value < 1, f"{flag(name)} must be between 0 and 1, not {value}"

        try:
            self.layer_numbers()
            bad_layers = False
        except ValueError:
            bad_layers = True
        return [
            *(below(n, 1) for n in ("epochs", "batch_size", "accumulation", "rank", "checkpoint_every")),
            *(below(n, 0) for n in ("weight_decay", "clip", "patience", "seed")),
            (
                self.prompt_loss is not None and not 0 <= self.prompt_loss < math.inf,
                f"--prompt-loss must be at least 0, not {self.prompt_loss}",
            ),
            *(share(n) for n in ("warmup", "dropout", "dev_share")),
            below("max_length", 8),
            positive("learning_rate"),
            positive("alpha"),
            positive("loraplus_ratio"),
            positive("beta"),
            *(below(n, 0) for n in ("desirable_weight", "undesirable_weight")),
            (
                self.desirable_weight == self.undesirable_weight == 0,
                "--desirable-weight and --undesirable-weight cannot both be 0",
            ),
            (
                self.schedule not in SCHEDULES,
                f"--schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}",
            ),
            (
                self.attention not in ATTENTIONS,
                f"--attention must be one of {', '.join(ATTENTIONS)}, not {self.attention!r}",
            ),
            (
                self.learn not in LEARNED,
                f"--learn must be one of {', '.join(LEARNED)}, not {self.learn!r}",
            ),
            (self.init not in INITS, f"--init must be one of {', '.join(INITS)}, not {self.init!r}"),
            (
                self.init == "orthogonal" and self.rank % 2 == 1,
                f"--init orthogonal needs an even --rank, not {self.rank}",
            ),
            (not self.target_modules.strip(), "--target-modules must name at least one module"),
            (self.seed > LARGEST_SEED, f"--seed must be at most {LARGEST_SEED}, not {self.seed}"),
            (
                re.fullmatch("auto|off|0*[1-9][0-9]{0,2}", self.checkpointing) is None,
                f"--checkpointing must be auto, off or a number from 1, not {self.checkpointing!r}",
            ),
            (
                bool(self.memory) and not self.memory_bytes(),
                f"--memory must be a size such as 10GB, not {self.memory!r}",
            ),
            (bad_layers, f"--layers {self.layers!r} is not a list such as 8-15 or 0,2,4"),
        ]

    def rate_at(self, peak: float, step: int, steps: int) -> float:
        """The learning rate of step `step` (0 is the first) of `steps`, by the warm-up and the schedule."""
        rising = int(self.warmup * steps)
        if step < rising:
            return peak * (step + 1) / rising
        done = (step - rising) / max(1, steps - rising)
        if self.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak * (1 - done) if self.schedule == "linear" else peak

    @property
    def effective_alpha(self) -> float:
        """Alpha as given, or one that scales ΔW by 2 at rank 16. (rsLoRA divides by the root of the rank, so twice the
        rank would scale it by 16 at rank 64, where training diverges.)"""
        if self.alpha is not None:
            return self.alpha
        return RSLORA_ALPHA if self.rslora else 2.0 * self.rank

    @property
    def passes(self) -> int:
        """How often the data are passed over."""
        return EPOCHS if self.epochs is None else self.epochs

    @property
    def batch(self) -> int:
        """Examples in one step of one process."""
        return BATCH if self.batch_size is None else self.batch_size

    def steps(self, rows: int, processes: int = 1) -> int:
        """Optimiser steps of a run that trains on so many rows an epoch."""
        return math.ceil(rows / (self.batch * self.accumulation * processes)) * self.passes

    def for_rows(self, rows: int, *, fresh: str, encoder: bool) -> TrainingSettings:
        """The settings with a number of epochs and a batch, where nobody gave them.

        Args:
            rows: rows that are trained on in an epoch.
            fresh: the kind of task that a new adapter learns from them; empty where the number of rows changes nothing.
                Choices get more passes over few rows. Free answers get worse by more passes, but better by smaller
                batches. What continues from an older version would forget more.
        """
        found = self
        if self.epochs is None:
            most, steps = FEW_ROWS_ENCODER if encoder else FEW_ROWS
            each = math.ceil(rows / (self.batch * self.accumulation))
            epochs = min(most, max(EPOCHS, math.ceil(steps / each))) if fresh == "choice" else EPOCHS
            found = replace(found, epochs=epochs)
        if self.batch_size is None:
            found = replace(found, batch_size=BATCH)
            if fresh == "generation" and self.accumulation == 1:
                while found.batch > FEW_FREE[0] and found.steps(rows) < FEW_FREE[1]:
                    found = replace(found, batch_size=found.batch // 2)
        return found

    def memory_bytes(self) -> int:
        """`10GB` → 10·10⁹, `8GiB` → 8·2³⁰; 0 if there is no limit."""
        found = SIZE.fullmatch(self.memory)
        if found is None:
            return 0
        number, unit, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " "))

    def layer_numbers(self) -> list[int] | None:
        """`0,2,8-10` → `[0, 2, 8, 9, 10]`; None for all layers."""
        if not self.layers:
            return None
        numbers: list[int] = []
        for part in self.layers.split(","):
            first, dash, last = part.partition("-")
            if int(last or first) > 9999 or (dash and int(last) < int(first)):
                raise ValueError(part)
            numbers += range(int(first), int(last if dash else first) + 1)
        return sorted(set(numbers))

    def peak_rate(self, hidden_size: int, *, encoder: bool = False, share: float = 1.0) -> float:
        """The learning rate given, or one chosen from the base's width.

        5e-4 · (2000 / hidden size)^0.775: ten times the full fine-tuning rate, falling with width, as fitted on Llama
        models in "LoRA Without Regret" (Schulman et al. 2025); 2.9e-4 at 4096, 2.5e-3 at 256. Half of that on an
        encoder: on MiniLM (width 384) the whole of it was unsteady with long texts (Yelp, 600 rows, 256 tokens, one
        seed: accuracy 0.23, with half 0.38), though short texts and few rows may want it all.

        Args:
            share: of the chosen rate that the objective takes.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return float(f"{5e-4 * (2000 / hidden_size) ** 0.775 * (0.5 if encoder else 1.0) * share:.2g}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> TrainingSettings:
        """Settings from a config file or keyword arguments; see `options.from_mapping`."""
        return from_mapping(cls, values, where)
