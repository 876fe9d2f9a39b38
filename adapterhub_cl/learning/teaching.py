"""Carries out a training order: reads the data, trains, evaluates, keeps replay samples and publishes the version."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from adapterhub_cl import objectives, strategies
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.adapters.targets import left_out
from adapterhub_cl.bases.divided_base import alone
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.context import Hub
from adapterhub_cl.data.marked import Part, marked
from adapterhub_cl.errors import GateRefused, UsageError
from adapterhub_cl.learning import fact_lessons, kin_trial
from adapterhub_cl.learning.foretelling import Foreteller
from adapterhub_cl.learning.judging import Judge, conclude
from adapterhub_cl.learning.material import (
    Material,
    prepare,
    refuse_other_labels,
    with_limits,
)
from adapterhub_cl.learning.notes import tell, tell_alike_tasks, tell_parent, tell_scale
from adapterhub_cl.learning.order import TrainOrder, mention_what_is_there, suited, tell_tuned
from adapterhub_cl.learning.recording import training_facts
from adapterhub_cl.learning.request import TrainRequest, made_since
from adapterhub_cl.learning.soft_targets import with_soft_targets
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.progress import Noting, Reporter
from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.samples.store import Samples
from adapterhub_cl.training import checkpoints, speed
from adapterhub_cl.training.learn import learn
from adapterhub_cl.training.processes import check_tracker, close_trackers, everyones, open_trackers
from adapterhub_cl.training.runs import Run, leave
from adapterhub_cl.training.speed import seconds_per_row
from adapterhub_cl.training.training_rows import TrainingSet, rows_of, way_of
from adapterhub_cl.types import AdapterRecord, Example


@dataclass(frozen=True)
class TrainingPlan:
    """What a run would do, from everything but the training itself.

    Attributes:
        kind: of the task: `choice`, `generation` or `text`.
        prompt_format: how it is asked.
        examples: rows that would be trained on in an epoch.
        held_out: rows held out to choose the best epoch.
        truncated: rows that are longer than `max_length` tokens and would be cut.
        typical_length: of the rows, in tokens: the median.
        longest: the longest row, in tokens.
        epochs, batch_size: given, or chosen by the number of rows.
        rank: of the adapter.
        seconds: of all steps, by one step that was timed; scoring comes on top.
        trainable: parameters of the adapter.
        dtype: type of the products; `why` says it with the reason, empty if the user named it.
        computes: attention, padding and what is computed twice, in words.
        memory_bytes: the most memory that the run is expected to hold.
        labels: of a choice.
        notes: what was read, what was decided and why, and what may be wrong with the rows.
        shown: the first row as the base reads it; what is learned of it is marked.
    """

    task: str
    kind: str
    prompt_format: str
    examples: int
    held_out: int
    truncated: int
    max_length: int
    typical_length: int
    longest: int
    epochs: int
    batch_size: int
    steps: int
    seconds: float
    learning_rate: float
    rank: int
    trainable: int
    dtype: str
    why: str
    computes: str
    memory_bytes: int
    labels: list[str]
    notes: list[str]
    shown: list[Part]


def plan(hub: Hub, order: TrainOrder) -> TrainingPlan:
    """What `teach` would do; nothing is written.

    Raises:
        DataError, UsageError: the data or a setting cannot be used.
    """
    registry, reporter = hub.registry, Noting(hub.reporter)
    material = prepare(registry, order, parent=None, sha256=None)
    order = suited(order, material.data.read.prefers)
    settings = order.settings
    tell_tuned(registry, order.request, material.data.read.prefers, reporter)
    objective = objectives.taught_by(registry.base, material.data, settings)
    tell(material, order.request, objective, reporter)
    tell_alike_tasks(registry, material, order.request, reporter)
    if (trial := order.strategy.trial) is not None:
        reporter.note(
            f"before the training, up to {trial.versions} versions of other tasks are tried and the best starts race; "
            "the time below does not count that"
        )
    with reporter.piece("loading the base", 1):
        base = hub.base
    material = with_limits(material, base, settings)
    asked = fact_lessons.beside(material, settings.seed).trained if order.request.facts else []
    unchanged = fact_lessons.expected_answers(hub, material, asked)
    with _adapter(base, order, material, objective) as model:
        lesson = lesson_of(order, material, unchanged)
        rows = rows_of(model, base, objective, order.strategy, lesson, settings, reporter)
        settings = settings.for_rows(len(rows.training), fresh=lesson.fresh, encoder=base.is_encoder)
        way = way_of(model, base, objective, order.strategy, rows, settings, reporter)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        each = seconds_per_row(model, base, objective, rows.training, settings, way)
    lengths = sorted(map(len, rows.training))
    rate = settings.peak_rate(base.width, encoder=base.is_encoder, share=objective.rate_share)
    return TrainingPlan(
        task=material.task.name,
        kind=material.task.kind,
        prompt_format=material.task.prompt_format if objective.writes else "",
        examples=len(rows.training),
        held_out=len(rows.dev_tokens),
        truncated=rows.cut,
        max_length=rows.length,
        typical_length=lengths[len(lengths) // 2],
        longest=lengths[-1],
        epochs=settings.passes,
        batch_size=settings.batch,
        steps=settings.steps(len(rows.training)),
        seconds=round(each * len(rows.training) * settings.passes, 1),
        learning_rate=rate,
        rank=settings.rank,
        trainable=trainable,
        dtype=way.dtype,
        why=base.why,
        computes=way.describe(),
        memory_bytes=way.expected,
        labels=list(material.task.labels),
        notes=reporter.notes,
        shown=marked(base.tokenizer, material.task, rows.training[0]),
    )


def _adapter(
    base: LoadedBase, order: TrainOrder, material: Material, objective: BaseObjective, begun: Path | None = None
) -> AbstractContextManager[Any]:
    """The base with the LoRA that an order trains: a new one, or one that continues from or stands on its parent.

    Args:
        begun: the files of an adapter that a new one begins as a copy of.
    """
    place = material.parent.path if material.parent else begun
    on_top = material.beneath
    return new_adapter(
        base,
        order.settings,
        objective.task_type,
        None if on_top else place,
        place if on_top else None,
        [material.task, *(lesson.task for lesson in material.past)],
    )


def teach(hub: Hub, order: TrainOrder, *, run: Run | None) -> AdapterRecord:
    """Carry out an order; every process of `accelerate launch` calls this, the first one writes.

    Args:
        run: the run to resume; None starts a new one.

    Raises:
        DataError, UsageError: the data or a setting cannot be used; nothing was written.
        TrainingInterrupted: stopped by the user; the run can be resumed.
    """
    registry, reporter = hub.registry, hub.reporter
    registry.check_store()
    if run is None:
        mention_what_is_there(registry, order.request, reporter)
    stored = dict(run.request) if run else {}
    material = prepare(registry, order, parent=stored.get("parent"), sha256=stored.get("sha256"))
    order = suited(order, material.data.read.prefers)
    request, settings, strategy = order.request, order.settings, order.strategy
    if run is None:
        tell_tuned(registry, request, material.data.read.prefers, reporter)
    objective = objectives.taught_by(registry.base, material.data, settings)
    tell(material, request, objective, reporter)
    if run is None:
        tell_alike_tasks(registry, material, request, reporter)
    if material.parent is not None and request.verb == "update":
        tell_parent(registry, material.parent, reporter)
        tell_scale(material.parent, material, reporter)
    if request.log_with:
        check_tracker(request.log_with)
    way = speed.stored(run.path) if run is not None else None
    with reporter.piece("loading the base", 1):
        base = hub.base_in(way.dtype if way is not None else "")
    if request.forecast and base.shards is not None:
        raise UsageError("--forecast cannot look at a base that FSDP divides", "leave it out, or start one process")
    material = with_limits(material, base, settings)
    if material.parent is None and settings.target_modules == "all-linear" and (told := left_out(base)):
        reporter.note(told)
    accelerator = Accelerator(
        cpu=base.device.type == "cpu",
        log_with=request.log_with or None,
        project_dir=str(registry.path / "logs") if request.log_with else None,
    )
    run = run or _new_run(registry, request, material, accelerator)
    lock = run.lock() if accelerator.is_main_process else None
    try:
        if lock is not None and stored:  # a new run is claimed as it starts
            run.claim()
        if request.log_with:
            asked = {"strategy": request.strategy, "verb": request.verb, "run": run.id}
            open_trackers(accelerator, request.name, {**settings.to_json(), **asked})
        length = min(settings.max_length, base.context)
        judge = alone(base.shards, lambda: Judge(hub, order, material, length))
        unchanged = unchanged_rows(hub, order, material, run.path, accelerator)
        kin = _tried(hub, order, material, run.path, accelerator)
        soft = request.rebased_from.get("soft_targets") or {}
        strategy = with_soft_targets(strategy, registry.path, soft, material, base, objective, length)
        foretold = None
        if request.forecast and judge is not None:
            foretold = Foreteller(hub, order, material, judge.probes, run.path, accelerator)
        begun = _begun(run.path, request, accelerator)
        with _adapter(base, order, material, objective, begun) as model:
            learned = learn(
                model,
                base,
                objective,
                strategy,
                replace(lesson_of(order, material, unchanged), kin=kin),
                settings,
                run=run.path,
                chosen=way,
                on_speed=lambda choice: _store_speed(run.path, choice, accelerator),
                accelerator=accelerator,
                reporter=reporter,
                watch=None if foretold is None else foretold.watch(),
            )

            def conclusion() -> tuple[AdapterRecord, GateRefused | None]:
                _tell_overtaken(registry, request, run, material, reporter)
                refuse_other_labels(registry, request, material.task)
                recorded = training_facts(base.info, order, run, material, learned.facts, model)
                assert judge is not None  # the first process has it
                told = foretold.made.to_json() if foretold is not None and foretold.made is not None else None
                return conclude(judge, model, learned, recorded, {"forecast": told} if told else {})

            main = accelerator.is_main_process
            concluded = alone(base.shards, conclusion) if main or base.shards else None
            if concluded is None:
                return registry.get(everyones("", accelerator))
            record, refused = concluded
            everyones(record.ref, accelerator)
            if request.log_with:
                scores = {f"eval_{metric}": value for metric, value in record.metrics.items()}
                accelerator.log(scores, step=int(learned.facts["steps"]))
    except BaseException as error:
        if accelerator.is_main_process:
            doomed = isinstance(error, GateRefused)  # by its forecast: there is nothing to go on with
            kept = "a checkpoint" if (run.path / checkpoints.NAME).exists() and not doomed else ""
            leave(run, error, f"cl-adapter {request.verb} {request.name} --resume", kept)
        raise
    finally:
        if request.log_with:
            close_trackers(accelerator, request.log_with)
        if lock is not None:
            lock.release()
    run.remove()
    Samples(registry).rebalance()
    if refused is not None:
        raise refused
    return registry.get(record.ref)


def _tell_overtaken(
    registry: Registry, request: TrainRequest, run: Run, material: Material, reporter: Reporter
) -> None:
    """Add a note if another update of the same adapter was published during this training."""
    parent = material.parent
    if parent is None or parent.name != request.name:
        return
    for other in made_since(registry, run):
        if other.ref != parent.ref:
            reporter.note(
                f"note: {other.ref} was made in the meantime; this version continues from {parent.ref} without it"
            )


def unchanged_rows(
    hub: Hub, order: TrainOrder, material: Material, run: Path, accelerator: Accelerator
) -> Sequence[tuple[Example, bool]]:
    """Beside new facts: questions with their old answers; see `fact_lessons.old_answers`. One process
    asks for all."""
    if not order.request.facts:
        return ()
    rows: Sequence[tuple[Example, bool]] = ()

    def ask() -> Sequence[tuple[Example, bool]]:
        return fact_lessons.old_answers(hub, material, fact_lessons.beside(material, order.settings.seed).trained, run)

    if accelerator.is_main_process or hub.base.shards:
        rows = alone(hub.base.shards, ask) or ()
    return everyones(rows, accelerator)


def _tried(
    hub: Hub, order: TrainOrder, material: Material, run: Path, accelerator: Accelerator
) -> Sequence[strategies.Kin]:
    """The versions of other tasks that the strategy wants tried on the new rows. One process tries them; a run that
    goes on from a checkpoint has its start already."""
    trial = order.strategy.trial
    if trial is None or (run / checkpoints.NAME).exists():
        return ()
    shards, found = hub.base.shards, None
    if accelerator.is_main_process or shards:
        found = alone(shards, lambda: kin_trial.try_versions(hub, order, material, trial))
    return everyones(found or (), accelerator)


def lesson_of(order: TrainOrder, material: Material, unchanged: Sequence[tuple[Example, bool]] = ()) -> TrainingSet:
    """The rows that the loop trains on."""
    return TrainingSet(
        material.task,
        material.data.examples,
        material.review,
        material.raw,
        past=material.origins,
        together=order.strategy.what_is_read == "data",
        parent=material.parent.path if material.parent else None,
        augment=order.augments,
        rehearse=order.rehearses,
        unchanged=unchanged,
        avoid=material.held_out.examples if material.held_out else (),
        places=material.data.places,
        prompt_loss=0.0 if material.data.read.prefers else order.prompt_loss,
        fresh=_fresh(order, material),
    )


def _fresh(order: TrainOrder, material: Material) -> str:
    """The kind of task of which a new adapter may have few rows; facts are taught in many wordings."""
    continued = material.parent is not None and not material.beneath
    if continued or material.raw or material.data.read.prefers or order.request.facts:
        return ""
    return material.task.kind


def _new_run(registry: Registry, request: TrainRequest, material: Material, accelerator: Accelerator) -> Run:
    row = {
        **request.to_json(),
        "created_at": datetime.now(UTC).isoformat(),
        "sha256": material.data.sha256,
        "parent": material.parent.ref if material.parent else "",
    }
    started = Run.start(registry.runs_dir, row) if accelerator.is_main_process else None
    run = everyones(started, accelerator)
    assert run is not None  # the first process started it
    return run


def _begun(run: Path, request: TrainRequest, accelerator: Accelerator) -> Path | None:
    """A run's own copy of the files that its adapter begins from: it can go on without the hub that has them."""
    if not request.begin_from:
        return None
    place, draft = run / "begun", run / "begun.part"
    if accelerator.is_main_process and not place.exists():
        with storage_errors(run):
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(request.begin_from, draft)
            draft.rename(place)
    accelerator.wait_for_everyone()
    return place


def _store_speed(run: Path, choice: speed.Speed, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        speed.store(run, choice)
