"""A training verb from its request to the published version: read, train, evaluate, keep replay samples, record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from accelerate import Accelerator

from adapterhub_cl import augmentation, objectives, replay
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.adapters.targets import left_out
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import StorageError, TrainingInterrupted
from adapterhub_cl.launching import is_helper_process
from adapterhub_cl.learning.judging import Judge, conclude, refusal
from adapterhub_cl.learning.material import (
    Material,
    prepare,
    refuse_other_labels,
    tell,
    tell_parent,
    tell_scale,
    with_limits,
)
from adapterhub_cl.learning.recording import training_facts
from adapterhub_cl.learning.request import TrainRequest, check
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.store import Samples
from adapterhub_cl.strategies import Combined, build
from adapterhub_cl.training import checkpoints, speed
from adapterhub_cl.training.learn import TrainingSet, learn
from adapterhub_cl.training.processes import check_tracker, close_trackers, everyones, open_trackers
from adapterhub_cl.training.runs import Run
from adapterhub_cl.types import AdapterRecord


def _finished(registry: Registry, request: TrainRequest, run: Run | None, reporter: Reporter) -> AdapterRecord | None:
    """A resumed run may have been published just before it was killed.

    Returns:
        the version that the run has published already; None where there is still something to train.
    """
    if run is None:
        if request.verb == "add-task" and (old := _versions(registry, request.name)):
            reporter.note(
                f"note: {old[-1].ref} is there already; this is a new version made from scratch. To go on from it: "
                f"cl-adapter update {request.name} DATA"
            )
        waiting = Run.unfinished(registry.runs_dir, request.verb, request.name)
        if waiting:
            reporter.note(
                f"note: there is an unfinished {request.verb} of {request.name} ({waiting[0].id}); "
                "--resume would continue it, cl-adapter gc --older-than 0 drops it. Starting anew."
            )
        return None
    for line in registry.repair():  # a version that was renamed into place but not yet in the index is adopted
        reporter.note(f"note: {line}")
    for record in registry.adapters(all_versions=True):
        if record.name == request.name and record.training.get("run") == run.id:
            reporter.note(f"run {run.id} was finished already as {record.ref}")
            run.remove()
            return record
    return None


def teach(
    registry: Registry,
    load: Callable[[], LoadedBase],
    request: TrainRequest,
    *,
    run: Run | None,
    reporter: Reporter | None,
) -> AdapterRecord:
    """Carry out a request; every process of `accelerate launch` calls this, the first one writes.

    Args:
        load: gives the base; called when the data have been read and checked.
        run: the run to resume; None starts a new one.

    Raises:
        DataError, UsageError: the data or a setting cannot be used; nothing was written.
        TrainingInterrupted: stopped by the user; the run can be resumed.
    """
    if reporter is None or is_helper_process():
        reporter = Reporter()  # one process of several tells
    done = _finished(registry, request, run, reporter)
    if done is not None:
        if done.status == "rejected":
            raise refusal(done, request.strategy)
        return done
    check(registry, request)
    settings = request.training()
    keep = replay.parse(request.replay)
    strategy = build(request.strategy, request.options)
    objective = objectives.of(registry.base)
    stored = dict(run.request) if run else {}
    material = prepare(registry, request, strategy, parent=stored.get("parent"), sha256=stored.get("sha256"))
    tell(material, request, objective, reporter)
    if material.parent is not None and request.verb == "update":
        tell_parent(registry, material.parent, reporter)
        tell_scale(material.parent, material, reporter)
    if request.log_with:
        check_tracker(request.log_with)
    with reporter.piece("loading the base", 1):
        base = load()
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
        parent = material.parent
        if request.log_with:
            asked = {"strategy": request.strategy, "verb": request.verb, "run": run.id}
            open_trackers(accelerator, request.name, {**settings.to_json(), **asked})
        length = min(settings.max_length, base.context)
        judge = Judge(registry, base, objective, request, material, length, reporter)
        place = parent.path if parent else None
        on_top = material.beneath
        with new_adapter(
            base,
            settings,
            objective.task_type,
            None if on_top else place,
            place if on_top else None,
            [material.task, *(lesson.task for lesson in material.past)],
        ) as model:
            learned = learn(
                model,
                base,
                objective,
                strategy,
                lesson_of(request, material, strategy, keep),
                settings,
                run=run.path,
                chosen=speed.stored(run.path),
                on_speed=lambda choice: _store_speed(run.path, choice, accelerator),
                accelerator=accelerator,
                reporter=reporter,
            )
            if not accelerator.is_main_process:
                return registry.get(everyones("", accelerator))
            _tell_overtaken(registry, request, run, material, reporter)
            refuse_other_labels(registry, request, material.task)
            record, refused = conclude(
                judge, model, keep, strategy, learned, training_facts(base.info, request, run, material, learned.facts)
            )
            everyones(record.ref, accelerator)
            if request.log_with:
                scores = {f"eval_{metric}": value for metric, value in record.metrics.items()}
                accelerator.log(scores, step=int(learned.facts["steps"]))
    except BaseException as error:
        _leave(run, accelerator, request, error)
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
    """Say so where another update of the same adapter was published while this one was learned."""
    begun, parent = str(run.request.get("created_at", "")), material.parent
    if parent is None or parent.name != request.name:
        return
    for other in _versions(registry, request.name):
        if begun and other.status == "active" and other.created_at > begun and other.ref != parent.ref:
            reporter.note(f"note: {other.ref} was made meanwhile; this version goes on from {parent.ref} without it")


def lesson_of(request: TrainRequest, material: Material, strategy: Combined, keep: replay.Keep) -> TrainingSet:
    """What the loop is to learn of what was read."""
    settings = request.training()
    wanted = settings.prompt_loss
    return TrainingSet(
        material.task,
        material.data.examples,
        material.review,
        material.raw,
        past=material.origins,
        together=strategy.what_is_read == "data",
        parent=material.parent.path if material.parent else None,
        augment=augmentation.parse_all(request.augment),
        avoid=material.held_out.examples if material.held_out else (),
        places=material.data.places,
        prompt_loss=(0.0 if replay.keeps_data(keep.policy) else 0.25) if wanted is None else wanted,
    )


def _versions(registry: Registry, name: str) -> list[AdapterRecord]:
    """The versions of an adapter, oldest first; none where there is no such adapter."""
    return registry.versions(name) if name in {record.name for record in registry.adapters()} else []


def _leave(run: Run, accelerator: Accelerator, request: TrainRequest, error: BaseException) -> None:
    """A run that has nothing to go on from is dropped; one that was stopped says how to go on."""
    if not accelerator.is_main_process:
        return
    if not (run.path / checkpoints.NAME).exists():
        run.remove()
        if isinstance(error, StorageError):
            error.hint = "free some space, then start again"
        return
    go_on = f"go on with: cl-adapter {request.verb} {request.name} --resume"
    if isinstance(error, TrainingInterrupted):
        error.hint = go_on
    elif isinstance(error, KeyboardInterrupt):
        raise TrainingInterrupted("stopped; a checkpoint was kept", go_on) from error


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


def _store_speed(run: Path, choice: speed.Speed, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        speed.store(run, choice)
