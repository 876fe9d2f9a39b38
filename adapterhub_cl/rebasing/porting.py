"""A version that is used on a base near the old one without training: tried, measured, and kept if it keeps its score.

The difference that an adapter makes often still fits a base that was fine-tuned or trained on from its own (PortLLM,
Khan et al. 2024). Whether it does is measured here, not assumed. Where it keeps too little, the version may be tried
with the difference of the bases in it, or its task is learned again from where it stands, so that only the rest has to
be learned.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub_cl import training_file
from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.adapters.cards import card
from adapterhub_cl.adapters.head_files import read_layout
from adapterhub_cl.adapters.lora_config import facts_of
from adapterhub_cl.bases.finite_weights import spoilt_weights
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import AdapterError, BaseModelError, DataError
from adapterhub_cl.evaluation.gate import decide
from adapterhub_cl.evaluation.probes import Probe, effect, score, with_source
from adapterhub_cl.learning.request import SHAPE
from adapterhub_cl.rebasing.lesson_files import WrittenLesson
from adapterhub_cl.rebasing.new_hub import FOLDER
from adapterhub_cl.rebasing.rebase_options import HOW, PORTED, RESIDUAL, RebaseOptions, ways
from adapterhub_cl.rebasing.rebinding import copy_version
from adapterhub_cl.rebasing.relearning import may_lose, rebased_from
from adapterhub_cl.rebasing.residual import BaseDifference, write_residual
from adapterhub_cl.rebasing.task_sources import TaskSource
from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.samples.of_task import length_of
from adapterhub_cl.types import DERIVED, AdapterRecord, Evaluation


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


class Porter:
    """Tries versions of an old hub on the base of a new one.

    Args:
        hub: the new one.
    """

    def __init__(self, hub: Hub, old: Registry, options: RebaseOptions) -> None:
        self.hub, self.old, self.options = hub, old, options
        self.difference = BaseDifference(hub, old.base)

    def port(self, found: TaskSource, lesson: WrittenLesson, asked: Mapping[str, Any]) -> Tried:
        """Give the old version to the new hub if it keeps its score there; notes say why, if it does not.

        Both are scored on the same rows. The old version's samples may be among them: it has learned them on either
        base.

        Args:
            asked: training settings that the user gave. A training that is to have another shape begins fresh, and so
                does one in place of a version that was made from others.

        Raises:
            IntegrityError: a file of the old version is missing or changed.
            StorageError: the disk refused; nothing was published.
        """
        name, ref, fits = found.task.name, found.record.ref, False
        fresh = any(one in asked for one in SHAPE) or found.record.kind in DERIVED
        left = ways(self.options)
        while left:
            way = left.pop(0)
            try:
                return Tried(self._tried(found, lesson, way))
            except (AdapterError, BaseModelError, DataError) as error:
                fits = fits or (way == PORTED and isinstance(error, KeepsTooLittleError) and not fresh)
                so = "it is only where training begins" if fits else "its task is learned again"
                so = f"it is tried {HOW[left[0]]}" if left else so
                self.hub.reporter.note(f"{name}: {ref} cannot be used {HOW[way]} ({error.message}), so {so}")
        return Tried(fits=fits)

    def _tried(self, found: TaskSource, lesson: WrittenLesson, way: str) -> AdapterRecord:
        """The version in the new hub.

        Raises:
            KeepsTooLittleError: its score falls too far.
            AdapterError: it does not fit.
        """
        task, record, hub, least = found.task, found.record, self.hub, self.options.min_retention
        if set(record.tasks) != {task.name}:
            raise AdapterError("it answers for several tasks")
        probe = Probe(task, found.held, found.measured_on or lesson.eval, length_of(record), found.held_sha256)
        rows, n = {"row_scores": lesson.old_row_scores}, len(found.held)
        before = Evaluation(task.name, lesson.metric, float(lesson.old_measured or 0.0), n, probe.data, rows)
        self.old.check_files(record)
        if self._spoilt:
            raise BaseModelError(f"the new base has values that are not numbers, such as in {self._spoilt[0]}")
        with self._files(record, way) as (folder, about):
            with as_served(hub.base, folder) as model:
                after = score(model, hub.base, probe, hub.reporter, f"trying {record.ref} {HOW[way]}")
            decision = decide([effect(probe, before, after, record.ref)], may_lose(lesson.metric, before.value, least))
            if not decision.passed:
                raise KeepsTooLittleError(f"its {lesson.metric} falls from {before.value:.4g} to {after.value:.4g}")
            told: dict[str, Any] = {**rebased_from(self.old, found, lesson, least), "source": way, "rows": 0}
            told |= {"old_score": before.value, "new_score": after.value, **about}
            told.pop("old_score_from", None)
            scores, base = [with_source(after, probe.sha256)], hub.registry.base
            manifest = {"rebased_from": told, "gate": decision.to_json(), **facts_of(folder, base)}
            training, made_from = training_file.read(record.path), [(record.ref, "rebased_from")]
            shown = card(record.name, base, task, scores, training, made_from, read_layout(folder))
            made = folder if way == RESIDUAL else None
            return copy_version(self.old, hub.registry, record, manifest, scores, folder=made, card=shown)

    @cached_property
    def _spoilt(self) -> list[str]:
        """Weights of the new base that are not numbers."""
        return spoilt_weights(self.hub.base.model)

    @contextmanager
    def _files(self, record: AdapterRecord, way: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The folder of what is tried, and what the manifest says of it beside its scores."""
        if way == PORTED:
            yield record.path, {}
            return
        registry = self.hub.registry
        made = registry.path / FOLDER / record.task / RESIDUAL
        try:
            with storage_errors(made):
                made.mkdir(parents=True)
                held = write_residual(self.difference, record, made)
            yield made, {"difference_held": round(held, 6)}
        finally:
            clear(registry, record.task)


def clear(registry: Registry, task: str) -> None:
    """Remove what a rebase that was killed has left of a residual."""
    left = registry.path / FOLDER / task / RESIDUAL
    if left.is_symlink() or left.is_file():
        left.unlink()
    else:
        shutil.rmtree(left, ignore_errors=True)
