"""What the old version of a choice task says of each label of the rows that the new one learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adapterhub_cl import objectives
from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.context import Hub
from adapterhub_cl.learning.soft_targets import OldProbabilities
from adapterhub_cl.rebasing.lesson_files import OLD, WrittenLesson
from adapterhub_cl.rebasing.new_hub import FOLDER
from adapterhub_cl.rebasing.task_sources import TaskSource
from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.registry.files import sha256_file
from adapterhub_cl.samples.of_task import length_of
from adapterhub_cl.strategies.told_rows import sample_key
from adapterhub_cl.types import Example


def has_old_probabilities(found: TaskSource) -> bool:
    """Whether the old version's answers are labels with a probability each: those of a choice, not preferences."""
    return found.task.kind == "choice" and not any(row.prefers for row in found.rows)


def with_note(found: TaskSource, weight: float) -> TaskSource:
    """The source with a note, where soft targets are asked for and its task has none."""
    if not weight or not found.source or has_old_probabilities(found):
        return found
    note = "its answers are not labels, so --soft-targets changes nothing; --pseudo-samples lets the old version answer"
    return replace(found, notes=(*found.notes, note))


def with_old_probabilities(
    old: Hub, new: Registry, found: TaskSource, lesson: WrittenLesson, written: Sequence[Example]
) -> WrittenLesson:
    """The lesson with the old version's probabilities of its rows, written beside them.

    Args:
        written: rows that the old version wrote, which are learned beside those of the source.

    Raises:
        IntegrityError: a file of the old version is missing or changed.
        StorageError: the disk refused.
    """
    base, rows, path = old.base, [*found.rows, *written], new.path / FOLDER / found.task.name / OLD
    old.registry.check_files(found.record)
    with (
        as_served(base, found.record.path) as model,
        old.reporter.piece(f"what {found.record.ref} says of {found.task.name}", len(rows)) as advance,
        base.autocast(),
    ):
        answers = objectives.of(base.info).predict(
            model, base.tokenizer, found.task, rows, max_length=length_of(found.record), progress=advance
        )
    labels = [label for label in found.task.labels if all(label in one.scores for one in answers)]
    asked = [(row, one) for row, one in zip(rows, answers, strict=True) if row.answer in labels]
    if len(asked) < len(rows):
        note = f"note: {len(rows) - len(asked)} rows have labels that {found.record.ref} does not know: no soft targets"
        old.reporter.note(note)
    said = {sample_key(row): [one.scores[label] for label in labels] for row, one in asked}
    with storage_errors(path):
        OldProbabilities(labels, said).write(path)
        sha256 = {**lesson.sha256, OLD: sha256_file(path)}
    return replace(lesson, soft=OLD, sha256=sha256)
