"""What a merge or a distillation was asked for, and every check that needs no torch: mistakes are told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from adapterhub_cl import merging
from adapterhub_cl.consolidation.parents import Parents, check_new_name, find_parents, least_retention
from adapterhub_cl.distillation.distill_settings import DistillationSettings
from adapterhub_cl.errors import UsageError
from adapterhub_cl.merging import BaseMethod
from adapterhub_cl.options import from_mapping, option
from adapterhub_cl.registry import Registry, parse_ref
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import AdapterRecord

MEASUREMENTS = 24  # most retentions that a search measures
AUTO = "auto"
ALIKE = 0.9  # how similar two adapters are that `prune --redundant` proposes to merge
UNUSED_DAYS = 30.0  # how long nobody used a version that `prune --unused` proposes to remove
EPOCHS = 8  # replay samples are few: three passes, as for a task's data, are not enough
FRESH = "none"


@dataclass(frozen=True, kw_only=True)
class MeasuredOptions:
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
class MergeOrder:
    """A merge that was found good.

    Attributes:
        parents: each with its weight.
        least: the gate's bound.
        name: of the adapter that it becomes a version of; None for a plan.
        new_version: there may be versions of it already.
    """

    request: MergeRequest
    parents: Parents
    method: BaseMethod
    least: float | None
    name: str | None = None
    new_version: bool = False


def check_merge(
    registry: Registry, request: MergeRequest, name: str | None, *, new_version: bool = False
) -> MergeOrder:
    """Check what was asked and find the parents; writes nothing.

    Args:
        name: None for a plan of a merge that has no name yet.

    Raises:
        UsageError: names, weights, rank, bound or options that cannot be used.
        AdapterError, IntegrityError: a parent that cannot be used.
    """
    if request.min_retention is not None and not request.evaluate:
        raise UsageError("--min-retention needs the retention that --no-eval leaves out", "give one or the other")
    method = merging.build(request.method, request.options or {})
    if request.rank is not None and request.rank < 1:
        raise UsageError(f"--rank must be 1 or more, not {request.rank}", "leave it out to keep all that is there")
    least = least_retention(registry, request.min_retention)
    if name is not None:
        check_new_name(registry, name, new_version)
    parents = find_parents(registry, request.refs, weights=request.weights, expression=request.expression)
    if parents.weights is None:
        parents = replace(parents, weights=method.default_weights(len(parents.records)))
    return MergeOrder(request, parents, method, least, name, new_version)


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
        off="do not ask about the replay samples",
        config=False,
    )
    data: Sequence[str] = option(tuple, "unlabelled text to ask as well: FILE, or TASK=FILE; may be repeated")
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


def check_distill(
    registry: Registry, request: DistillRequest, name: str, *, new_version: bool = False, elsewhere: bool = False
) -> float | None:
    """Check what was asked; writes nothing.

    Args:
        registry: of the hub that the student is for.
        elsewhere: the student's base is another one than the teachers'.

    Returns:
        the gate's bound.

    Raises:
        UsageError: a name or settings that cannot be used.
    """
    settings, held_to = request.training(), request.held_to()
    least = least_retention(registry, request.min_retention)
    if request.start != FRESH:
        merging.build(request.start, {})
    problems = [
        (
            request.min_retention is not None and not request.evaluate,
            "--min-retention needs the retention that --no-eval leaves out",
            "give one or the other",
        ),
        (
            request.grow and (least is None or not request.evaluate),
            "--grow raises the rank until a retention is reached",
            "say which: --min-retention 0.95",
        ),
        (request.pseudo < 0, f"--pseudo must be at least 0, not {request.pseudo}", "--pseudo 200"),
        (settings.dora, "a student is plain LoRA, not DoRA", "leave --dora out"),
        (
            elsewhere and bool(held_to.features),
            "--features compares layers of one base with each other",
            "leave it out with --into",
        ),
        (
            bool(settings.prompt_loss),
            "teachers are listened to at the answers only",
            "leave --prompt-loss out",
        ),
        (
            not (request.samples or request.data or request.pseudo),
            "nothing to ask the teachers: --no-samples leaves their replay samples out",
            "give text with --data FILE, or let them write some: --pseudo 200",
        ),
    ]
    for wrong, message, hint in problems:
        if wrong:
            raise UsageError(message, hint)
    check_new_name(registry, name, new_version)
    return least


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


def refreshed(registry: Registry, name: str) -> tuple[AdapterRecord, DistillRequest | None]:
    """How a distilled adapter is made again from its teachers as they are now; None where none has a newer version.

    Raises:
        UsageError: it was not distilled, or from another hub.
    """
    there = registry.get(name)
    recipe = there.manifest.get("recipe") or {}
    if there.kind != "distilled" or recipe.get("from_hub"):
        raise UsageError(
            f"{there.ref} was {there.kind}" + (" from another hub" if recipe.get("from_hub") else ""),
            "--refresh makes a distilled adapter again from its teachers' newest versions",
        )
    newest = [registry.get(parse_ref(ref).name).ref for ref in recipe["parents"]]
    if newest == list(recipe["parents"]):
        return there, None
    asked = {**recipe, "refs": newest, "min_retention": recipe["min_retention"], "evaluate": recipe["measured"]}
    return there, DistillRequest.from_json(asked)
