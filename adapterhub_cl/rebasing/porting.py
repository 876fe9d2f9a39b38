"""A version that is used as it is on a base near the old one: tried, measured, and kept if it keeps its score.

The difference that an adapter makes often still fits a base that was fine-tuned or trained on from its own (PortLLM,
Khan et al. 2024). Whether it does is measured here, not assumed. Where it keeps too little, its task is learned again
from where it stands, so that only the rest has to be learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.bases.finite_weights import spoilt_weights
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import AdapterError, BaseModelError, DataError
from adapterhub_cl.evaluation.gate import decide
from adapterhub_cl.evaluation.probes import Probe, effect, score, with_source
from adapterhub_cl.learning.request import SHAPE
from adapterhub_cl.rebasing.lesson_files import WrittenLesson
from adapterhub_cl.rebasing.rebinding import copy_version
from adapterhub_cl.rebasing.relearning import may_lose, rebased_from
from adapterhub_cl.rebasing.task_sources import TaskSource
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.of_task import length_of
from adapterhub_cl.types import DERIVED, AdapterRecord, Evaluation

PORTED = "ported"


@dataclass(frozen=True)
class Tried:
    """What came of trying a version on the new base.

    Attributes:
        record: its copy in the new hub; None if it keeps too little, or does not fit.
        fits: a training can begin from it.
    """

    record: AdapterRecord | None = None
    fits: bool = False


class KeepsTooLittleError(AdapterError):
    """The version answers on the new base, but worse than it may."""


def port(
    hub: Hub, old: Registry, found: TaskSource, lesson: WrittenLesson, least: float, asked: Mapping[str, Any]
) -> Tried:
    """Copy the old version into the new hub if it keeps its score there; a note says why, if it does not.

    Both are scored on the same rows. The old version's samples may be among them: it has learned them on either base.

    Args:
        hub: the new one.
        least: the share of its old score that it must keep.
        asked: training settings that the user gave. A training that is to have another shape begins fresh, and so does
            one in place of a version that was made from others.

    Raises:
        IntegrityError: a file of the old version is missing or changed.
        StorageError: the disk refused; nothing was published.
    """
    try:
        return Tried(_ported(hub, old, found, lesson, least))
    except (AdapterError, BaseModelError, DataError) as error:
        name, ref = found.task.name, found.record.ref
        fresh = any(name in asked for name in SHAPE) or found.record.kind in DERIVED
        fits = isinstance(error, KeepsTooLittleError) and not fresh
        so = "it is only where training begins" if fits else "its task is learned again"
        hub.reporter.note(f"{name}: {ref} cannot be used as it is ({error.message}), so {so}")
        return Tried(fits=fits)


def _ported(hub: Hub, old: Registry, found: TaskSource, lesson: WrittenLesson, least: float) -> AdapterRecord:
    """The copy.

    Raises:
        KeepsTooLittleError: its score falls too far.
        AdapterError: it does not fit.
    """
    task, record = found.task, found.record
    if record.task != task.name:
        raise AdapterError("it answers for several tasks")
    probe = Probe(task, found.held, found.measured_on or lesson.eval, length_of(record), found.held_sha256)
    rows = {"row_scores": lesson.old_row_scores}
    before = Evaluation(task.name, lesson.metric, float(lesson.old_measured or 0.0), len(found.held), probe.data, rows)
    old.check_files(record)
    if spoilt := spoilt_weights(hub.base.model):
        raise BaseModelError(f"the new base has values that are not numbers, such as in {spoilt[0]}")
    with as_served(hub.base, record.path) as model:
        after = score(model, hub.base, probe, hub.reporter, f"trying {record.ref} as it is")
    decision = decide([effect(probe, before, after, record.ref)], may_lose(lesson.metric, before.value, least))
    if not decision.passed:
        raise KeepsTooLittleError(f"its {lesson.metric} falls from {before.value:.4g} to {after.value:.4g}")
    told: dict[str, Any] = {**rebased_from(old, found, lesson, least), "source": PORTED, "rows": 0}
    told |= {"old_score": before.value, "new_score": after.value}
    told.pop("old_score_from", None)
    manifest = {"rebased_from": told, "gate": decision.to_json()}
    return copy_version(old, hub.registry, record, manifest, [with_source(after, probe.sha256)])
