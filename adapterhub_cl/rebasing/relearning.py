"""A task is learned again through the training path of `add-task`, and judged against its old score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adapterhub_cl import augmentation, objectives, training_file
from adapterhub_cl import replay as policies
from adapterhub_cl.bases.kinds import is_encoder
from adapterhub_cl.bases.sources import has_chat_template
from adapterhub_cl.context import Hub
from adapterhub_cl.data.formats import is_template
from adapterhub_cl.errors import AdapterHubError, GateRefused
from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.probes import Probe, can_answer, score_version
from adapterhub_cl.learning.order import finished, order_of
from adapterhub_cl.learning.request import SHAPE, TrainRequest, build, learned_from
from adapterhub_cl.learning.teaching import teach
from adapterhub_cl.rebasing.lesson_files import WrittenLesson
from adapterhub_cl.rebasing.new_hub import FOLDER
from adapterhub_cl.rebasing.rebinding import origin
from adapterhub_cl.rebasing.task_sources import PSEUDO, TaskSource
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.of_task import length_of
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.training.runs import Run
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation

# Settings that were chosen for the old base or the machine of that time.
OF_THE_BASE = ("learning_rate", "prompt_format", "target_modules", "layers", "attention", "checkpointing", "memory")
# Settings that are chosen by the number of rows where nobody gives them.
OF_THE_ROWS = ("epochs", "batch_size")


def old_score(hub: Hub, found: TaskSource, lesson: WrittenLesson) -> WrittenLesson:
    """The lesson with the score of the old version on its held-out rows: as recorded, or measured now.

    Where those rows are samples that the old version learned, it scores about 1 on them, and no new version, which has
    not learned them, could keep up. The lower of that and of the score that was recorded on rows held out is the one
    to keep; a note says which.
    """
    if not can_answer(hub.registry.base, found.record, found.task):
        return lesson
    where = found.measured_on or lesson.eval
    held = Probe(found.task, found.held, where, length_of(found.record), found.held_sha256)
    score = score_version(hub, found.record, held)
    lesson = replace(
        lesson,
        old_score=score.value,
        old_n=score.n,
        old_measured=score.value,
        old_row_scores=str(score.details.get("row_scores") or ""),
    )
    # Facts are learned and measured on the same rows by both versions; what the old one wrote it has no other score on.
    if found.measured_on or found.facts or found.source == PSEUDO:
        return lesson
    task, ref, shown = found.task, found.record.ref, f"{score.value:.4g}"
    known = recorded_held_out(found)
    if known is None:
        hub.reporter.note(
            f"note: {task.name} is compared with the {task.metric} that {ref} has on samples that it learned, {shown}: "
            "no score on rows held out is recorded, so a good new version may be refused (--min-retention allows more)"
        )
        return lesson
    lower = as_share(task.metric, known.value) < as_share(task.metric, score.value)
    used = f"on {known.n} rows held out, {known.value:.4g}, as recorded" if lower else f"on its samples, {shown}"
    other = f"on samples that it learned, {shown}" if lower else f"on rows held out, {known.value:.4g}"
    hub.reporter.note(f"{task.name} is compared with the {task.metric} of {ref} {used} (the lower one; {other})")
    return replace(lesson, old_score=known.value, old_n=known.n, old_from=known.data) if lower else lesson


def recorded_held_out(found: TaskSource) -> Evaluation | None:
    """The score of the old version on the task, as it was recorded on a held-out file when the version was made; None
    where there is none."""
    learned = (found.record.training.get("data") or {}).get("sha256")
    for row in found.record.manifest.get("evaluations", ()):
        sha256 = (row.get("details") or {}).get("sha256")
        if (row["task"], row["metric"]) == (found.task.name, found.task.metric) and sha256 not in (None, "", learned):
            return Evaluation(
                row["task"], row["metric"], float(row["value"]), int(row["n"]), str(row.get("data") or "")
            )
    return None


def relearn(
    hub: Hub,
    old: Registry,
    found: TaskSource,
    lesson: WrittenLesson,
    least: float,
    asked: Mapping[str, Any],
    *,
    begin: bool = False,
    soft: float = 0.0,
) -> AdapterRecord:
    """Learn a task in the new hub, or go on where a run of it was stopped; a version that keeps too little is recorded
    as rejected.

    Args:
        hub: the new one.
        least: the share of the old score that it must keep.
        asked: training settings that the user gave; the others are those of the old version.
        begin: begin as a copy of the old version, which fits this base.
        soft: weight of the soft targets, where the lesson has any.

    Raises:
        AdapterHubError: the task cannot be learned; nothing was recorded.
    """
    registry = hub.registry
    task = found.task
    augment, why = _augment(found, registry.base)
    if why:
        hub.reporter.note(f"note: {task.name} is learned without the augmentation of {found.record.ref}: {why}")

    def request_of(copy: bool) -> TrainRequest:
        given = {**_described(found, registry.base), **_settings(found, asked, shape=copy), "eval": lesson.eval}
        given |= {
            **({"augment": augment} if augment else {}),
            "columns": lesson.columns,
            "max_forgetting": may_lose(task.metric, float(lesson.old_score or 0.0), least),
        }
        request, _ = build(registry, "add-task", task.name, lesson.data, False, given)
        told = {**rebased_from(old, found, lesson, least), **({"begun_as_copy": True} if copy else {})}
        told |= {"reads": reads} if (reads := _reads(old, found)) else {}
        if lesson.soft:
            told |= {"soft_targets": {"file": f"{FOLDER}/{task.name}/{lesson.soft}", "weight": soft}}
        if lesson.old_row_scores and not lesson.old_from:  # otherwise the old score is of other rows
            told |= {"old_row_scores": lesson.old_row_scores}
        return replace(request, rebased_from=told, begin_from=str(found.record.path.resolve()) if copy else "")

    try:
        for run in begun_runs(registry, task.name):
            kept, run_again = build(registry, "add-task", task.name, None, True, {})
            if run_again is None or run_again.id != run.id:
                break
            if kept.same_as(_wherever(request_of(bool(kept.begin_from)), kept)):
                done = finished(registry, kept, run, hub.reporter)
                return done or teach(hub, order_of(registry, kept), run=run)
            hub.reporter.note(f"note: the unfinished training of {task.name} had other options; it begins again")
            run.drop()
            break
        return teach(hub, order_of(registry, request_of(begin)), run=None)
    except GateRefused as refused:
        hub.reporter.note(f"warning: {refused.message}; it is kept as rejected")
        return registry.get(refused.record.ref)


def _wherever(request: TrainRequest, kept: TrainRequest) -> TrainRequest:
    """The request with the names of the old hub's folder that a stopped run has: it may have been renamed since."""
    told = {**request.rebased_from, "hub": kept.rebased_from.get("hub")}
    return replace(request, rebased_from=told, begin_from=kept.begin_from)


def rebased_from(old: Registry, found: TaskSource, lesson: WrittenLesson, least: float) -> dict[str, Any]:
    """What the new version's manifest says of where it came from."""
    return {
        **origin(old, found.record),
        "source": lesson.source,
        "rows": lesson.rows,
        **({"pseudo_samples": lesson.written} if lesson.written else {}),
        "metric": lesson.metric,
        "old_score": lesson.old_score,
        **({"old_measured": lesson.old_measured, "old_score_from": lesson.old_from} if lesson.old_from else {}),
        "min_retention": least,
    }


def _reads(old: Registry, found: TaskSource) -> dict[str, Any]:
    """The columns that the old hub's task reads, and those that were named for its data: the rows that are written down
    here have columns of their own, and later data are like the old ones."""
    own = found.record if found.record.task == found.task.name else found.first
    data = [
        {"columns": dict(told), "unused": list(one.get("unused", ()))}
        for one in (learned_from(old, own) if own is not None else ())
        if (told := one.get("columns"))
    ]
    layout = found.task.layout
    return {**({"layout": layout.to_json()} if layout else {}), **({"data": data} if data else {})}


def drop_runs(registry: Registry, task: str) -> None:
    """Remove unfinished runs of a rebase that learned a task from other rows than it would be learned from now."""
    for run in begun_runs(registry, task):
        run.remove()


def begun_runs(registry: Registry, task: str) -> list[Run]:
    """Unfinished runs of a rebase that learn a task."""
    found = Run.unfinished(registry.runs_dir, "add-task", task)
    return [run for run in found if run.request.get("rebased_from")]


def may_lose(metric: str, old: float, least: float) -> float:
    """How much an old score may fall, as the gate counts."""
    return min(1.0, max(0.0, (1 - least) * as_share(metric, old)))


def _described(found: TaskSource, base: BaseInfo) -> dict[str, Any]:
    """The task as the old hub has it, as far as the new base can ask it so."""
    task = found.task
    given: dict[str, Any] = {"kind": task.kind, "metric": task.metric, "instruction": task.instruction}
    if task.kind == "choice":
        given["labels"] = task.labels
    if found.facts:
        given["facts"] = True
    if not is_encoder(base.architecture) and task.kind != "text":
        own_words = is_template(task.prompt_format)
        chat = task.prompt_format == "chat"
        if own_words or not (chat or has_chat_template(base)):  # a base with a template is asked through it
            given["prompt_format"] = task.prompt_format
    kept = found.record.manifest.get("replay") or (found.first.manifest.get("replay") if found.first else None) or {}
    policy = kept.get("policy")
    if policy in policies.ROOM.names() and kept.get("size") is not None:
        writes = "writing" in policies.ROOM.get(policy).needs
        if not writes or objectives.of(base).writes:
            given["replay"] = f"{policy}:{kept['size']}"
    return given


def _augment(found: TaskSource, base: BaseInfo) -> tuple[str, str]:
    """The augmentations of the version whose settings are taken over, as `--augment` writes them; what cannot be used
    is left out, and the second text says why."""
    kept, why = [], ""
    for part in filter(None, str(_recorded(found).get("augment") or "").split(",")):
        try:
            one = augmentation.parse(part)
        except AdapterHubError as error:
            why = error.message
            continue
        if augmentation.ROOM.get(one.name).needs_base and not objectives.of(base).writes:
            why = f"{one.name} needs a base that writes"
        elif any(row.prefers for row in found.rows):
            why = "preferences are not augmented"
        else:
            kept.append(part)
    return ",".join(kept), why


def _recorded(found: TaskSource) -> dict[str, Any]:
    """What `training.json` says of the version whose settings are taken over; empty where there is none."""
    return training_file.read(found.first.path) if found.first is not None else {}


def _settings(found: TaskSource, asked: Mapping[str, Any], *, shape: bool) -> dict[str, Any]:
    """The training settings of the old version that are not of its base, under those that the user gave. Of those that
    are chosen by the number of rows only what the user or `tune` gave is taken over; versions that do not record what
    was given have only what `tune` chose.

    Args:
        shape: the new adapter has the layers of the old one too.
    """
    usual = TrainingSettings().to_json()
    had = (found.first.training.get("settings") if found.first is not None else None) or {}
    given = _recorded(found).get("given")
    if given is None and found.first is not None:
        given = found.first.manifest.get("tuned")
    other = [name for name in OF_THE_BASE if not (shape and name in SHAPE)]
    other += [name for name in OF_THE_ROWS if name not in (given or {})]
    kept = {k: v for k, v in had.items() if k in usual and v != usual[k] and k not in other}
    if "rank" in asked and "alpha" not in asked:
        kept.pop("alpha", None)
    return {**kept, **asked}
