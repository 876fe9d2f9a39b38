"""The options of the training verbs, and the request that `run.json` keeps, so that `--resume` needs nothing else.

No torch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.bases.kinds import MASKED, objectives_of
from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.data.layouts import JUDGEMENTS, filled, named
from adapterhub_cl.data.reading import absolute, at_hand, check_there, read_rows
from adapterhub_cl.errors import DataError, IntegrityError, UsageError
from adapterhub_cl.launching import refuse_sharding
from adapterhub_cl.learning.chosen_settings import FORMAT, usual_settings
from adapterhub_cl.learning.train_options import FACT_REPLAY, FACT_SETTINGS, AddTaskOptions
from adapterhub_cl.options import flag, given_of
from adapterhub_cl.registry import Registry, check_new
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import DEFAULT
from adapterhub_cl.strategies import build as build_strategy
from adapterhub_cl.training.runs import Run
from adapterhub_cl.types import DERIVED, AdapterRecord, BaseInfo

# An adapter that starts from another one takes these settings from it.
SHAPE = ("rank", "alpha", "target_modules", "layers", "rslora", "dora")


@dataclass(frozen=True)
class TrainRequest(AddTaskOptions):
    """One call of `add-task` or `update`, as it is kept in `run.json`.

    Attributes:
        verb: `add-task` or `update`.
        data: path or id of the training data.
        start: the version that an update continues from; empty: the adapter's newest.
        settings: what the user gave of `TrainingSettings`; the rest are defaults.
        tuned: those of the settings, and the prompt format, that `tune` chose and the user did not give.
        stream: which stage of which stream this is, with what was measured before it.
        rebased_from: the version of another hub, on another base, that this one takes the place of, with its score;
            see `adapterhub_cl/rebasing`.
        begin_from: the folder of that version, where the new one begins as a copy of it.
    """

    verb: str
    name: str
    data: str
    start: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, Any] = field(default_factory=dict)
    stream: Mapping[str, Any] = field(default_factory=dict)
    rebased_from: Mapping[str, Any] = field(default_factory=dict)
    begin_from: str = ""

    def training(self) -> TrainingSettings:
        """The whole settings.

        Raises:
            UsageError: any of them cannot be used; all problems in one message.
        """
        usual = FACT_SETTINGS if self.facts else {}
        return TrainingSettings.from_mapping({**usual, **self.settings}, "the settings")

    def refuse_shape(self, parent: AdapterRecord) -> None:
        """Raise if a setting would give the new adapter a shape that differs from its parent's."""
        wanted, manifest = asdict(self.training()), parent.manifest
        has = {**parent.training.get("settings", {}), "rank": parent.rank}
        has["alpha"] = manifest.get("alpha", has.get("alpha"))
        given = [flag(name) for name in SHAPE if name in self.settings and wanted[name] != has.get(name)]
        if given:
            raise UsageError(
                f"{', '.join(given)} cannot be set: the new adapter continues from {parent.ref} and keeps its shape",
                "leave the flag out, or train a fresh adapter with add-task --strategy isolated",
            )

    def refuse_changed(self, asked: Mapping[str, Any]) -> None:
        """Raise where an option that is given again on a resume is not what the run began with."""
        had = {**self.training().to_json(), **self.to_json(), **self.settings}
        other = [
            flag("set" if name == "options" else name)
            for name, value in asked.items()
            if _plain(had.get(name)) != _plain(value)
        ]
        if other:
            raise UsageError(
                f"a resumed run keeps its settings: {', '.join(other)} cannot be changed",
                "leave them out, or start a new run without --resume",
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "labels": list(self.labels)}

    def same_as(self, other: TrainRequest) -> bool:
        """Whether both ask for the same, even if one of them was read from `run.json`."""
        return bool(_plain(self.to_json()) == _plain(other.to_json()))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TrainRequest:
        """The reverse of `to_json`; unknown keys of `run.json` are ignored.

        Raises:
            IntegrityError: keys are missing.
        """
        known = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        try:
            return cls(**{**known, "labels": tuple(known.get("labels", ()))})
        except TypeError as error:
            raise IntegrityError(f"run.json cannot be used: {error}", "start again without --resume") from error


def _plain(value: Any) -> Any:
    """A value as `run.json` would give it back."""
    return json.loads(json.dumps(value, default=str))


def build(
    registry: Registry,
    verb: str,
    name: str,
    data: str | Path | None,
    resume: bool,
    asked: Mapping[str, Any],
    *,
    tuned: bool = True,
) -> tuple[TrainRequest, Run | None]:
    """The request that a call makes, and the run that it resumes; see `order_of` for its checks.

    Args:
        asked: options of `AddTaskOptions` and of `TrainingSettings`, those that were given.
        tuned: begin with the settings that `tune` chose for the name.

    Raises:
        UsageError: a bad name, no data, nothing to resume, other data than the run was started with, a newer version
            than the run that would be resumed, or a launcher that divides the model.
    """
    refuse_sharding()
    name = check_new(name) if verb == "add-task" else _to_update(registry, name)
    if resume:
        run = Run.newest(registry.runs_dir, verb, name)
        request = TrainRequest.from_json(run.request)
        if data is not None and absolute(data) != request.data:
            raise UsageError(
                f"the unfinished run learns from {request.data}, not from {data}",
                "leave the data out, or start a new run without --resume",
            )
        request.refuse_changed(asked)
        if verb == "add-task":  # an update says so, and goes on: see `teaching`
            _refuse_overtaken(registry, run)
        return request, run
    if data is not None and not isinstance(data, str | Path):
        raise UsageError(
            f"{verb} {name}: data must be a file, a saved dataset or a dataset's id, not a {type(data).__name__}",
            "write the rows to a file, one JSON object a line",
        )
    if data is None:
        raise UsageError(f"{verb} {name}: no data given", f"cl-adapter {verb} {name} DATA.jsonl")
    given = {**given_of(AddTaskOptions, asked), "settings": given_of(TrainingSettings, asked)}
    if tuned:
        chosen = _tuned(registry, verb, name, given)
        if given.get("facts"):  # which cannot be tuned for: they need the passes that are theirs
            chosen = {key: value for key, value in chosen.items() if key not in FACT_SETTINGS}
        given["tuned"] = {key: value for key, value in chosen.items() if asked.get(key) is None}
        usual = dict(given["tuned"])
        if FORMAT in usual:
            given[FORMAT] = usual.pop(FORMAT)
        given["settings"] = {**usual, **given["settings"]}
    given["labels"] = tuple(given.get("labels", ()))
    if given.get("facts") and verb == "add-task":
        given.setdefault("replay", FACT_REPLAY)
    if verb == "update":
        before = registry.get(name)
        free = any(task.name == before.task and task.kind == "generation" for task in registry.tasks())
        given["columns"] = given.get("columns") or _usual_columns(learned_from(registry, before), str(data), free=free)
        given.setdefault("strategy", _usual_strategy(registry.base, str(data), given))
        kept = before.manifest.get("replay") or {}
        if kept.get("size") is not None:
            given.setdefault("replay", f"{kept['policy']}:{kept['size']}")
        if cut := (before.training.get("settings") or {}).get("max_length"):
            given["settings"] = {"max_length": cut, **given["settings"]}
    check_there(data)
    return TrainRequest(verb, name, absolute(data), **given), None


def versions_of(registry: Registry, name: str) -> list[AdapterRecord]:
    """The versions of an adapter, oldest first; none where there is no such adapter."""
    return registry.versions(name) if name in {record.name for record in registry.adapters()} else []


def made_since(registry: Registry, run: Run) -> list[AdapterRecord]:
    """The active versions of a run's adapter that others have made since the run began, oldest first."""
    begun = str(run.request.get("created_at", ""))
    return [
        record
        for record in (versions_of(registry, str(run.request["name"])) if begun else ())
        if record.status == "active" and record.created_at > begun and record.training.get("run") != run.id
    ]


def _refuse_overtaken(registry: Registry, run: Run) -> None:
    """Raise where others have made a version of the name since the run began: what it learned would take its place.

    Raises:
        UsageError: names the newest such version.
    """
    if newer := made_since(registry, run):
        raise UsageError(
            f"{newer[-1].ref} was made after this run had begun, and a version made of the run would take its place",
            "remove the unfinished run: cl-adapter gc --older-than 0; then start again without --resume",
        )


def _tuned(registry: Registry, verb: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `tune` chose for the name; flags win over them. What continues from an older version keeps
    its shape, and the usual epochs."""
    strategy = build_strategy(given.get("strategy") or DEFAULT)
    return usual_settings(registry, name, fresh=verb == "add-task" and strategy.makes != "continued")


def learned_from(registry: Registry, record: AdapterRecord) -> list[Mapping[str, Any]]:
    """What is recorded of the data of a version and of those before it, the newest first; behind a version that a
    rebase made, what the old hub recorded."""
    found: list[Mapping[str, Any]] = []
    for one in reversed(registry.versions(record.name)):
        if one.version <= record.version:
            reads = (one.manifest.get("rebased_from") or {}).get("reads") or {}
            found += [one.training.get("data") or {}, *reads.get("data", ())]
    return found


def _usual_columns(facts: Sequence[Mapping[str, Any]], data: str, *, free: bool = True) -> Mapping[str, Any]:
    """The default columns of an update: those of the newest version whose columns the new data have. It need not be the
    one before, which may have been learned from production, whose rows have columns of their own.

    Args:
        facts: what is recorded of the data of each version, the newest first.
        free: whether its answers are free ones, which may be judged; a choice is right or wrong.

    Raises:
        DataError: the data have a column that may judge the answers, which nobody chose to leave out.
    """
    if not any(one.get("columns") for one in facts) or data == "-" or not at_hand(data):
        return {}
    rows = read_rows(data)
    there = {column for row in rows.rows for column in row}
    for one in facts:
        if (told := one.get("columns")) and there.issuperset(named(told)):
            known = {*named(told), *one.get("unused", ())}
            new = sorted(c for c in there - known if c.strip().lower() in JUDGEMENTS and any(filled(rows, c)))
            if free and new and not {"rejected", "desirable"} & set(told) and "input" in told:
                raise _judged(data, told, new[0])
            return told  # type: ignore[no-any-return]
    return {}


def _judged(data: str, told: Mapping[str, Any], column: str) -> DataError:
    each = {role: [given] if isinstance(given, str) else given for role, given in told.items()}
    one = ",".join(f"{role}={name}" for role, given in each.items() for name in given)
    return DataError(
        f"{data}: column {column!r} may judge the answers, and the version before was trained without it",
        f"if it does: --columns {shlex.quote(f'{one},desirable={column}')}; to learn every answer as right: "
        f"--columns {shlex.quote(one)}",
    )


def _usual_strategy(base: BaseInfo, data: str, given: Mapping[str, Any]) -> str:
    """The default strategy of an update: `sequential`, and `lwf` for raw text on an encoder (its weight α is
    `--set lwf.alpha`)."""
    if MASKED not in objectives_of(base.architecture) or not at_hand(data):
        return "sequential"
    layout = read_examples(data, given.get("columns") or None, given.get("instruction") or "").layout
    return "lwf" if layout == "raw text" else "sequential"


def _to_update(registry: Registry, name: str) -> str:
    """The name of the adapter that `update` makes a new version of.

    Raises:
        UsageError: it answers for several tasks, so new data would belong to none of them.
    """
    record = registry.get(name)
    if record.kind in DERIVED and not record.task:
        raise UsageError(
            f"{record.ref} was {record.kind} from adapters of several tasks ({', '.join(record.tasks)})",
            "update the adapter of one task, then merge or distill again",
        )
    return record.name
