"""The options of merge, distill and prune. The command reads them at its start, so nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from adapterhub_cl import merging
from adapterhub_cl.distillation.distill_settings import DistillationSettings
from adapterhub_cl.errors import UsageError
from adapterhub_cl.evaluation.general_options import GeneralOptions
from adapterhub_cl.options import from_mapping, option
from adapterhub_cl.settings import TrainingSettings

MEASUREMENTS = 24  # most retentions that a search measures
AUTO = "auto"
ALIKE = 0.9  # how similar two adapters are that `prune --redundant` proposes to merge
UNUSED_DAYS = 30.0  # how long nobody used a version that `prune --unused` proposes to remove
EPOCHS = 8  # replay samples are few: three passes, as for a task's data, are not enough
FRESH = "none"


@dataclass(frozen=True, kw_only=True)
class MeasuredOptions(GeneralOptions):
    """The options of every verb that makes a version out of others."""

    min_retention: float | None = option(
        None, "refuse if a task keeps less of its score, 0 to 1; default: hub.toml's, else none"
    )
    evaluate: bool = option(
        True,
        "measure how much of its score each task keeps",
        flag="--no-eval",
        off="do not measure retention",
        config=False,
    )


@dataclass(frozen=True)
class MergeRequest(MeasuredOptions):
    """What a merge was asked for.

    Attributes:
        refs: the versions to merge; empty where an expression names them.
    """

    refs: Sequence[str] = ()
    weights: Sequence[float] | None = option(
        None, "one weight for each version, with commas between; default: the method's",
        parse="adapterhub_cl.consolidation.asked:read_weights",
    )  # fmt: skip
    expression: str | None = option(None, 'versions and weights in one: "0.7*a + 0.3*b - c"')
    method: str = option(merging.DEFAULT, "the merge method", names="methods")
    rank: int | None = option(None, "highest rank of a layer; default: the method's")
    options: Mapping[str, Any] = option(
        dict, "METHOD.OPTION=VALUE, an option of the method; may be repeated", flag="--set",
        parse="adapterhub_cl.options:parse_set",
    )  # fmt: skip
    seed: int = option(0, "seed of every random choice", check="adapterhub_cl.settings:check_seed")


def read_weights(value: Any) -> list[float]:
    """`0.7,0.3` or a list of numbers → the weights.

    Raises:
        UsageError: not numbers.
    """
    try:
        return [float(part) for part in (value.split(",") if isinstance(value, str) else value)]
    except (TypeError, ValueError):
        raise UsageError(f"--weights {value!r} is not a list of numbers", "--weights 0.7,0.3") from None


@dataclass(frozen=True)
class DistillRequest(MeasuredOptions):
    """What a distillation was asked for.

    Attributes:
        refs: the teachers.
        distillation: what the user gave of `DistillationSettings`; `settings` of `TrainingSettings`.
    """

    refs: Sequence[str]
    distillation: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: bool = option(
        True,
        "ask the teachers about their replay samples",
        flag="--no-samples",
        off="do not use the parents' replay samples",
        config=False,
    )
    data: Sequence[str] = option(
        tuple, "unlabelled text for the teachers to answer: FILE, or TASK=FILE; may be repeated"
    )
    pseudo: int = option(0, "samples that each teacher writes for each of its tasks")
    start: str = option(merging.DEFAULT, "merge method whose result the student starts from, or none", names="methods")
    grow: bool = option(False, "double the rank until --min-retention is reached")

    def training(self) -> TrainingSettings:
        """The whole training settings; of a distillation the epochs' default is another one."""
        return TrainingSettings.from_mapping({"epochs": EPOCHS, **self.settings}, "the settings")

    def held_to(self) -> DistillationSettings:
        return from_mapping(DistillationSettings, self.distillation, "the settings")

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> DistillRequest:
        """The reverse of `asdict`; unknown keys are ignored."""
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


@dataclass(frozen=True)
class PruneRequest(MeasuredOptions):
    """What a pruning was asked for.

    Attributes:
        ref: the version to make smaller.
        bound: the retention that a search keeps; None: the gate's.
    """

    ref: str
    rank: int | None = option(
        None, "highest rank of a layer; auto is --search", parse="adapterhub_cl.consolidation.asked:read_rank"
    )
    energy: float | None = option(
        None, "share of each layer's ‖ΔW‖² to keep, at the lowest rank that does; default, alone: 0.99"
    )
    across: bool = option(False, "spend --rank (as the mean) or --energy over all layers together", flag="--global")
    search: bool = option(
        False,
        "find the lowest ranks that keep --min-retention, by measuring: on replay samples (50 or more), confirmed on "
        "the held-out data, or on the gate's own data; the measured retention is slightly optimistic",
    )
    magnitude: float | None = option(
        None, "share of the factors' smallest entries to set to zero; does not reduce the size by itself"
    )
    store: str | None = option(
        None, "storage type: fp32, bf16, fp16, or packed int8 or int4 (export unpacks them); default: unchanged"
    )
    measurements: int = option(MEASUREMENTS, "--search: most retentions to measure", metavar="N")
    seed: int = option(0, "seed of every random choice", check="adapterhub_cl.settings:check_seed")
    bound: float | None = None

    @classmethod
    def from_json(cls, recipe: Mapping[str, Any]) -> PruneRequest:
        """The request that a recipe came from, for the version `ref`; options that it does not name are defaults."""
        found = {key: recipe[key] for key in cls.__dataclass_fields__ if recipe.get(key) is not None}
        given = {"across": recipe.get("global", False), "evaluate": recipe.get("measured", True), **found}
        if not given.keys() & {"rank", "energy", "magnitude"} and not given.get("search"):
            given["energy"] = 1.0  # it changed the storage alone
        return cls(**given)


def read_rank(value: Any) -> int | str:
    """A whole number, or `auto`.

    Raises:
        UsageError: neither.
    """
    if value == AUTO:
        return AUTO
    try:
        if isinstance(value, bool) or float(value) != int(float(value)):
            raise ValueError
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"--rank {value!r} is not a whole number", "--rank 4, or --rank auto") from None
