"""The steps of a rebase: what each task would be learned from, then task by task until none is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub_cl.bases.loading import inspect_base
from adapterhub_cl.bases.same_weights import is_same_model
from adapterhub_cl.bases.sources import QUANTIZATIONS
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import (
    AdapterError,
    AdapterHubError,
    BaseModelError,
    HubError,
    IntegrityError,
    StorageError,
    TrainingInterrupted,
    UnknownNameError,
    UsageError,
)
from adapterhub_cl.options import flag
from adapterhub_cl.progress import Reporter
from adapterhub_cl.rebasing import lesson_files, porting, rebinding, relearning
from adapterhub_cl.rebasing.going_along import copy_aliases, take_tuned
from adapterhub_cl.rebasing.new_hub import FOLDER, NewHub, look, make
from adapterhub_cl.rebasing.old_probabilities import has_old_probabilities, with_note, with_old_probabilities
from adapterhub_cl.rebasing.pseudo_rows import measured_on_written, pseudo_rows, wanted_of
from adapterhub_cl.rebasing.rebase_options import HOW, RebaseOptions, ways
from adapterhub_cl.rebasing.task_sources import PSEUDO, TaskSource, source_of_task
from adapterhub_cl.registry import Registry
from adapterhub_cl.training.runs import acquire, held
from adapterhub_cl.types import AdapterRecord, BaseInfo

PLANNED, MOVED, REJECTED, NOT_MOVABLE, FAILED = "planned", "moved", "rejected", "not movable", "failed"


@dataclass(frozen=True)
class TaskMove:
    """What became of one task, or would.

    Attributes:
        old, new: versions; `new` is empty where there is none yet.
        source: `data`, `samples`, `pseudo-samples`, `rebound`, `ported`, or empty.
        state: `planned`, `moved`, `rejected`, `not movable` or `failed`.
        reason: why it is not movable, failed, or is not learned from its data.
        rows: rows to learn from; `held` rows that it is measured on.
        old_score, new_score: of the task's `metric` on the same rows; None where they were not measured.
        seconds: of this call; 0 for a task that was moved before.
        expected: the retention that is expected of a planned move: the mean of the `expected_from` tasks that were
            moved into the same hub from the same kind of source; None where there is none.
        begun_as_copy: the new version began as a copy of the old one.
    """

    task: str
    old: str
    new: str = ""
    source: str = ""
    state: str = PLANNED
    reason: str = ""
    rows: int = 0
    held: int = 0
    metric: str = ""
    old_score: float | None = None
    new_score: float | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    expected: float | None = None
    expected_from: int = 0
    begun_as_copy: bool = False

    @property
    def retention(self) -> float | None:
        """The new score divided by the old one; None where it cannot be told."""
        if self.metric == "perplexity" or not self.old_score or self.new_score is None:
            return None
        return self.new_score / self.old_score

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes), "retention": self.retention}

    def _cells(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_json().items() if key not in ("notes", "seconds")}


@dataclass(frozen=True)
class Rebased:
    """A hub on its new base.

    Attributes:
        hub: its folder.
        tasks: every task that was asked for.
    """

    hub: Path
    tasks: Sequence[TaskMove] = field(default_factory=tuple)

    def named(self, state: str) -> list[str]:
        """The tasks that are in this state."""
        return [one.task for one in self.tasks if one.state == state]

    def to_json(self) -> dict[str, Any]:
        return {"hub": str(self.hub), "tasks": [one.to_json() for one in self.tasks]}


def rebase(
    old: Hub,
    base: str,
    options: RebaseOptions,
    settings: Mapping[str, Any],
    opened: Callable[[Registry], Hub],
    free: Callable[[], None],
    *,
    revision: str | None = None,
    dry_run: bool = False,
) -> Rebased:
    """Carry out a rebase; see `AdapterHub.rebase`.

    Args:
        opened: makes the new hub's context.
        free: lets go of the old base, which is not needed any more.
    """
    if not options.to:
        raise UsageError("rebase needs the folder of the new hub", f"cl-adapter rebase {base} --to NEW_HUB")
    registry = old.registry
    has = registry.base.quantization if registry.base.quantization in QUANTIZATIONS else "none"
    quantization = options.quantization or has
    info = inspect_base(base, quantization, revision)
    there = look(registry, options.to, info)
    names = _chosen(registry, options.tasks)
    same = is_same_model(registry.base, there.base)
    if options.quantization and there.base.quantization != info.quantization:
        raise HubError(
            f"the hub at {there.path} holds its base in {there.base.quantization}, not in {info.quantization}",
            "leave --quantization out, or give another folder with --to, which will be made",
        )
    if not same and not options.quantization and there.base.fingerprint == registry.base.fingerprint:
        raise UsageError(
            f"the hub is bound to {registry.base.source} already, and --to holds it in another quantization",
            "name another base; or say --quantization, if it is to be held otherwise in the new hub",
        )
    idle = _idle(options, settings) if same else ""
    if dry_run:
        return Rebased(there.path, _planned(registry, there, names, same, options, idle))
    new = make(registry, there)
    lock = acquire(
        new.path / FOLDER / ".lock", f"a rebase into {new.path} is going on in another process", "wait for it"
    )
    with held(lock):
        done = NewHub(there.path, new.base, new)
        if same:
            if idle:
                old.reporter.note(f"note: {idle}")
            return Rebased(new.path, _rebound(registry, new, names, old.reporter))
        sources, moves = _prepared(old, done, names, options)
        free()
        hub = opened(new)
        porter = porting.Porter(hub, registry, options)
        for name, (found, lesson) in sources.items():
            moves[name] = _moved(porter, found, lesson, settings)
            _take_aliases(registry, new, moves[name])
            take_tuned(registry, new, moves[name].old, moves[name].new, relearning.OF_THE_BASE, old.reporter)
    return Rebased(new.path, [moves[name] for name in names])


def _chosen(registry: Registry, wanted: Sequence[str]) -> list[str]:
    """The tasks to be moved.

    Raises:
        UnknownNameError: a task is unknown, or nothing answers for it.
    """
    serving = registry.serving()
    for name in wanted:
        if name not in serving:
            raise UnknownNameError("task", name, sorted(serving))
    if not serving:
        raise UsageError("no adapter of this hub answers for a task, so there is nothing to move", "cl-adapter list")
    return list(wanted) or sorted(serving)


def _idle(options: RebaseOptions, settings: Mapping[str, Any]) -> str:
    """Which of the options that were given mean nothing where nothing is trained, in words; empty if none."""
    given = [
        name for name in ("budget", "pseudo_samples", "soft_targets", "port", "port_residual") if getattr(options, name)
    ]
    idle = [flag(name) for name in (*given, *settings)]
    return f"{', '.join(idle)} {'have' if len(idle) > 1 else 'has'} no effect" if idle else ""


def _planned(
    registry: Registry, there: NewHub, names: Sequence[str], same: bool, options: RebaseOptions, idle: str
) -> list[TaskMove]:
    serving, moved = registry.serving(), there.moved()
    if same:
        notes = ("the weights are the same, so it is copied", *([idle] if idle else []))
        return [TaskMove(name, serving[name], source=rebinding.REBOUND, notes=notes) for name in names]
    done = [_told(record, str(record.manifest["rebased_from"].get("ref"))) for record in moved.values()]
    found = []
    for name in names:
        if name in moved and not _again(moved[name], serving[name], options):
            found.append(_told(moved[name], serving[name]))
            continue
        source = _source(registry, there.base, name, options)
        move = _of(source, wanted_of(registry.base, source, options.pseudo_samples, options.budget))
        if move.state == PLANNED and (tried := [HOW[way] for way in ways(options)]):
            move = replace(move, notes=(*move.notes, f"{move.old} is first tried {', then '.join(tried)}"))
        kept = [one.retention for one in done if one.source == move.source and one.retention is not None]
        known = bool(kept) and move.metric != "perplexity"
        found.append(replace(move, expected=math.fsum(kept) / len(kept), expected_from=len(kept)) if known else move)
    return found


def _source(registry: Registry, base: BaseInfo, name: str, options: RebaseOptions) -> TaskSource:
    """What a task would be learned from, with what the options that were given change in it."""
    found = source_of_task(registry, base, name, options.budget, options.pseudo_samples)
    return with_note(found, options.soft_targets)


def _again(moved: AdapterRecord, serves: str, options: RebaseOptions) -> bool:
    """Whether a task that was moved before is to be moved once more: it was rejected, or has a newer version."""
    return options.again and (moved.status == "rejected" or moved.manifest["rebased_from"].get("ref") != serves)


def _of(found: TaskSource, pseudo: int = 0) -> TaskMove:
    """What is told of a task before it is moved.

    Args:
        pseudo: pseudo-samples that would be written beside its rows.
    """
    beside = " beside them" if found.rows else ""
    further = (f"up to {pseudo} pseudo-samples are written{beside}",) if pseudo else ()
    return TaskMove(
        found.task.name,
        found.record.ref,
        source=found.source,
        state=PLANNED if found.source else NOT_MOVABLE,
        reason=found.reason,
        rows=len(found.rows),
        held=len(found.held),
        metric=found.task.metric,
        notes=(*found.notes, *further),
    )


def _told(record: AdapterRecord, old: str, seconds: float = 0.0, notes: tuple[str, ...] = ()) -> TaskMove:
    """What a version that a rebase made tells of itself."""
    told = record.manifest["rebased_from"]
    return TaskMove(
        record.task,
        str(told.get("ref") or old),
        record.ref,
        str(told.get("source") or ""),
        REJECTED if record.status == "rejected" else MOVED,
        rows=int(told.get("rows") or 0),
        held=next((int(row["n"]) for row in record.manifest.get("evaluations", ())), 0),
        metric=str(told.get("metric") or ""),
        old_score=told.get("old_score"),
        new_score=told.get("new_score"),
        seconds=seconds,
        notes=notes,
        begun_as_copy=bool(told.get("begun_as_copy")),
    )


def _rebound(old: Registry, new: Registry, names: Sequence[str], reporter: Reporter) -> list[TaskMove]:
    reporter.note("the new base is the old one in other files, so the versions are copied and nothing is trained")
    there = rebinding.copied(new)
    for record in rebinding.to_copy(old, names):
        if record.ref not in there:
            there[record.ref] = rebinding.rebind(old, new, record, there)
        copy_aliases(old, new, record, there[record.ref])
        take_tuned(old, new, record.ref, there[record.ref].ref, (), reporter)
    for told in rebinding.follow(old, new, names, there):
        reporter.note(told)
    serving = old.serving()
    return [TaskMove(name, serving[name], there[serving[name]].ref, rebinding.REBOUND, state=MOVED) for name in names]


def _prepared(
    old: Hub, new: NewHub, names: Sequence[str], options: RebaseOptions
) -> tuple[dict[str, tuple[TaskSource, lesson_files.WrittenLesson]], dict[str, TaskMove]]:
    """For each task that is left: its rows in the new hub and its old score; what is told of the others."""
    registry, target = old.registry, new.registry
    assert target is not None  # it was made
    serving, moved = registry.serving(), new.moved()
    sources: dict[str, tuple[TaskSource, lesson_files.WrittenLesson]] = {}
    moves: dict[str, TaskMove] = {}
    for name in names:
        porting.clear(target, name)
        if name in moved and not _again(moved[name], serving[name], options):
            target.check_files(moved[name])
            was = str(moved[name].manifest["rebased_from"]["ref"])
            newer = f"; {serving[name]} answers for it in the old hub by now, and --again moves that one"
            since = "" if was == serving[name] else newer
            moves[name] = _told(moved[name], serving[name])
            old.reporter.note(f"{name} was {moves[name].state} before: {moved[name].ref} here, from {was}{since}")
            _take_aliases(registry, target, moves[name])
            continue
        found = _source(registry, new.base, name, options)
        moves[name] = _of(found)
        if not found.source:
            continue
        pseudo = wanted_of(registry.base, found, options.pseudo_samples, options.budget)
        soft = options.soft_targets > 0 and has_old_probabilities(found)
        lesson = lesson_files.read_lesson(target, found, pseudo, soft)
        if lesson is None:
            relearning.drop_runs(target, name)
            try:
                found, written = measured_on_written(found, pseudo_rows(old, found, pseudo))
                lesson = lesson_files.write_rows(target, found, written, pseudo)
                lesson = relearning.old_score(old, found, lesson)
            except (BaseModelError, IntegrityError, AdapterError) as error:
                begin = "" if found.source == PSEUDO else "its old score cannot be measured: "
                moves[name] = _without(moves[name], f"{begin}{error.message}")
                continue
            if lesson.old_score is None:
                moves[name] = _without(moves[name], f"{found.record.ref} has no head for it, so it has no old score")
                continue
            if soft:
                lesson = with_old_probabilities(old, target, found, lesson, written)
            lesson_files.finish_lesson(target, lesson)
        sources[name] = (lesson_files.with_written(target, found, lesson), lesson)
    return sources, moves


def _without(move: TaskMove, reason: str) -> TaskMove:
    return TaskMove(move.task, move.old, state=NOT_MOVABLE, reason=reason, metric=move.metric, notes=move.notes)


def _moved(
    porter: porting.Porter, found: TaskSource, lesson: lesson_files.WrittenLesson, settings: Mapping[str, Any]
) -> TaskMove:
    """One task; what cannot be learned is told, and the others go on.

    Raises:
        TrainingInterrupted, StorageError, BaseModelError: no other task could be learned either.
    """
    hub, old, options = porter.hub, porter.old, porter.options
    began, least, tried = time.monotonic(), options.min_retention, porting.Tried()
    if not relearning.begun_runs(hub.registry, found.task.name):
        tried = porter.port(found, lesson, settings)
    elif ways(options):
        hub.reporter.note(
            f"note: a training of {found.task.name} was stopped on the way, so it goes on, and {found.record.ref} is "
            "not tried without training"
        )
    if tried.record is not None:
        how = HOW[tried.record.manifest["rebased_from"]["source"]]
        hub.reporter.note(f"{found.task.name}: {found.record.ref} is used {how}")
        return _told(tried.record, found.record.ref, round(time.monotonic() - began, 1), found.notes)
    further = f", {lesson.written} of them pseudo-samples" if lesson.written else ""
    how = f"{found.record.ref} is trained on with" if tried.fits else "learned again from"
    hub.reporter.note(f"{found.task.name}: {how} {lesson.rows} rows ({lesson.source}{further})")
    for note in found.notes:
        hub.reporter.note(f"note: {found.task.name}: {note}")
    try:
        record = relearning.relearn(
            hub, old, found, lesson, least, settings, begin=tried.fits, soft=options.soft_targets
        )
    except TrainingInterrupted as error:
        error.hint = "the same command goes on where it stopped"
        raise
    except (StorageError, BaseModelError):
        raise
    except AdapterHubError as error:
        hub.reporter.note(f"warning: {found.task.name} cannot be learned: {error.message}")
        return replace(_without(_of(found), error.message), state=FAILED)
    return _told(record, found.record.ref, round(time.monotonic() - began, 1), found.notes)


def _take_aliases(old: Registry, new: Registry, move: TaskMove) -> None:
    """Give a task's new version the aliases of its old one; not where that one serves several tasks."""
    record = old.get(move.old)
    if move.state == MOVED and record.task == move.task:
        copy_aliases(old, new, record, new.get(move.new))
