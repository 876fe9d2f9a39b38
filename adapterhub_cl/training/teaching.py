"""A training verb from its request to the published version: read, train, evaluate, keep replay samples, record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from adapterhub_cl import objectives, replay, strategies
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import StorageError, TrainingInterrupted
from adapterhub_cl.evaluation.scoring import evaluate
from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.training import checkpoints, speed
from adapterhub_cl.training.cards import card
from adapterhub_cl.training.fused import fused
from adapterhub_cl.training.learn import Lesson, learn
from adapterhub_cl.training.lora import new_adapter, save_adapter, stored_adapter
from adapterhub_cl.training.material import Material, prepare, tell
from adapterhub_cl.training.processes import check_tracker, everyones
from adapterhub_cl.training.progress import Reporter
from adapterhub_cl.training.request import Request
from adapterhub_cl.training.runs import Run
from adapterhub_cl.types import AdapterRecord, Evaluation, Task

OBJECTIVE = "causal_lm"


def _finished(registry: Registry, request: Request, run: Run | None, reporter: Reporter) -> AdapterRecord | None:
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
        if record.name == request.name and record.manifest.get("training", {}).get("run") == run.id:
            reporter.note(f"run {run.id} was finished already as {record.ref}")
            run.remove()
            return record
    return None


def teach(
    registry: Registry,
    load: Callable[[], LoadedBase],
    request: Request,
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
    if reporter is None or int(os.environ.get("RANK", "0")) > 0:
        reporter = Reporter()  # one process of several tells
    done = _finished(registry, request, run, reporter)
    if done is not None:
        return done
    settings = request.training()
    keep = replay.parse(request.replay)
    strategy: strategies.BaseStrategy = strategies.ROOM.get(request.strategy)()
    objective: objectives.BaseObjective = objectives.ROOM.get(OBJECTIVE)()
    stored = dict(run.request) if run else {}
    material = prepare(registry, request, strategy, parent=stored.get("parent"), sha256=stored.get("sha256"))
    tell(material, request, reporter)
    if request.log_with:
        check_tracker(request.log_with)
    base = load()
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
        if parent is not None:
            registry.check_files(parent)
        if request.log_with:
            accelerator.init_trackers(request.name, config={**settings.to_json(), "strategy": request.strategy})
        before = _retention(base, objective, material, settings.max_length)
        with new_adapter(base, settings, objective.task_type, parent.path if parent else None) as model:
            _, facts = learn(
                model,
                base,
                objective,
                strategy,
                Lesson(material.task, material.data.examples, material.review, material.raw),
                settings,
                run=run.path,
                chosen=_stored_speed(run.path),
                on_speed=lambda choice: _store_speed(run.path, choice, accelerator),
                accelerator=accelerator,
                reporter=reporter,
            )
            if not accelerator.is_main_process:
                return registry.get(everyones("", accelerator))
            model.eval()
            with fused(model, base.dtype, speed.spare_bytes(base)):
                scores = _scores(model, base, objective, material, facts["max_length"], before, reporter)
            training = _training(request, run, material, facts)
            record = _publish(registry, base, model, request, material, keep, scores, training)
            everyones(record.ref, accelerator)
    except BaseException as error:
        _leave(run, accelerator, request, error)
        raise
    finally:
        accelerator.end_training()
        if lock is not None:
            lock.release()
    run.remove()
    return record


def _versions(registry: Registry, name: str) -> list[AdapterRecord]:
    """The versions of an adapter, oldest first; none where there is no such adapter."""
    return registry.versions(name) if name in {record.name for record in registry.adapters()} else []


def _leave(run: Run, accelerator: Accelerator, request: Request, error: BaseException) -> None:
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


def _new_run(registry: Registry, request: Request, material: Material, accelerator: Accelerator) -> Run:
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


def _stored_speed(run: Path) -> speed.Speed | None:
    path = run / "speed.json"
    return speed.Speed(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _store_speed(run: Path, choice: speed.Speed, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        with storage_errors(run):
            (run / "speed.json").write_text(json.dumps(speed.to_json(choice)), encoding="utf-8")


def _retention(
    base: LoadedBase, objective: objectives.BaseObjective, material: Material, max_length: int
) -> Evaluation | None:
    """What the old version scores on its own replay samples."""
    if material.parent is None or not material.review:
        return None
    with stored_adapter(base, material.parent.path) as model:
        return _on_replay(model, base, objective, material, min(max_length, base.context))


def _on_replay(
    model: Any, base: LoadedBase, objective: objectives.BaseObjective, material: Material, max_length: int
) -> Evaluation:
    return evaluate(
        model,
        base.tokenizer,
        objective,
        material.task,
        material.review,
        data=f"replay samples of {material.parent.ref}",  # type: ignore[union-attr]
        max_length=max_length,
        dtype=base.dtype,
    )[0]


def _scores(
    model: Any,
    base: LoadedBase,
    objective: objectives.BaseObjective,
    material: Material,
    max_length: int,
    before: Evaluation | None,
    reporter: Reporter,
) -> list[Evaluation]:
    scores: list[Evaluation] = []
    if material.held_out is not None:
        raw = material.held_out.layout == "raw text"
        task = Task(material.task.name, kind="text", metric="perplexity") if raw else material.task
        reporter.start("evaluating", len(material.held_out))
        try:
            scores = evaluate(
                model,
                base.tokenizer,
                objective,
                task,
                material.held_out.examples,
                data=material.held_out.source,
                max_length=max_length,
                dtype=base.dtype,
                progress=reporter.advance,
            )
        finally:
            reporter.finish()
    if before is not None:
        after = _on_replay(model, base, objective, material, max_length)
        details = {**after.details, "before": before.value}
        scores.append(replace(after, metric=f"replay_{after.metric}", details=details))
        reporter.note(f"old replay samples: {after.metric} {before.value:.4f} before, {after.value:.4f} after")
    return scores


def _training(request: Request, run: Run, material: Material, facts: dict[str, Any]) -> dict[str, Any]:
    held_out = material.held_out
    return {
        "run": run.id,
        "strategy": request.strategy,
        "objective": OBJECTIVE,
        "replay": request.replay,
        "settings": request.training().to_json(),
        "data": {
            "source": material.data.source,
            "sha256": material.data.sha256,
            "layout": material.data.layout,
            "columns": dict(request.columns),
            "examples": len(material.data),
            "skipped": material.data.skipped,
        },
        "eval": {"source": held_out.source, "sha256": held_out.sha256, "examples": len(held_out)} if held_out else None,
        **{key: value for key, value in facts.items() if key != "examples"},
        "trained_on": facts["examples"],
    }


def _publish(
    registry: Registry,
    base: LoadedBase,
    model: Any,
    request: Request,
    material: Material,
    keep: replay.Keep,
    scores: list[Evaluation],
    training: dict[str, Any],
) -> AdapterRecord:
    parent, task = material.parent, material.task
    edges = [(parent.ref, "updated_from")] if parent else []
    pool = [*material.data.examples, *material.review]
    samples = keep.select(pool, training["settings"]["seed"])
    config = model.peft_config["default"]
    with registry.new_draft(request.name) as draft, storage_errors(draft.path):
        save_adapter(model, draft.path, base.info.source)
        with open(draft.path / "replay.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(sample.to_json(), ensure_ascii=False) + "\n" for sample in samples)
        (draft.path / "training.json").write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
        text = card(request.name, base.info, task, scores, training, edges)
        (draft.path / "README.md").write_text(text, encoding="utf-8")
        manifest = {
            "kind": "updated" if parent else "trained",
            "rank": config.r,
            "alpha": config.lora_alpha,
            "target_modules": sorted(config.target_modules),
            "base": {"source": base.info.source, "fingerprint": base.info.fingerprint},
            "strategy": request.strategy,
            "replay": {"policy": keep.policy, "samples": len(samples)},
            "training": {key: training[key] for key in ("run", "steps", "best_epoch", "data", "eval", "settings")},
        }
        return registry.publish(draft, manifest, edges=edges, evaluations=scores, task=task, verb=request.verb)
