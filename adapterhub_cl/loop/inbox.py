"""The inbox: what production has left for each task to learn from, and what no task knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.loop.gathered import Gathered, gather
from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.registry.files import atomic_write_text
from adapterhub_cl.registry.names import refuse_inside
from adapterhub_cl.traffic.journal import Journal, Judged, KeptAnswer, texts_of
from adapterhub_cl.traffic.lesson_book import Lesson, Lessons

if TYPE_CHECKING:
    from adapterhub_cl.deciding.drift import Drift

UNKNOWN = 20  # answers that no task gave, from which groups are looked for
MOST = 2000  # of the newest answers, that are compared with what the router knows


@dataclass(frozen=True)
class TaskInbox:
    """What has gathered for one task.

    Attributes:
        answers: how many are kept.
        gathered: what was said of them and waits for a lesson.
        corrections: answers that were wrong, newest first.
        unsure: answers that nobody judged, the least confident first: worth labelling.
        lesson: the newest one.
    """

    task: str
    answers: int
    gathered: Gathered
    corrections: Sequence[Judged]
    unsure: Sequence[KeptAnswer]
    lesson: Lesson | None

    def to_json(self) -> dict[str, Any]:
        return {
            "answers": self.answers,
            **self.gathered.to_json(),
            "left_out": self.gathered.clean.left_out,
            "corrections": [_correction(one) for one in self.corrections],
            "unsure": [_row(one) for one in self.unsure],
            "lesson": self.lesson.to_json() if self.lesson else None,
        }


@dataclass(frozen=True)
class Inbox:
    """Everything that has gathered.

    Attributes:
        unknown: how many answers no task gave.
        groups: what the router makes of all inputs, with groups of those that no task knows; None of too few.
    """

    tasks: Sequence[TaskInbox]
    unknown: int = 0
    groups: Drift | None = None
    lessons: Sequence[Lesson] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": [one.to_json() for one in self.tasks],
            "unknown": self.unknown,
            "groups": self.groups.to_json() if self.groups else None,
            "lessons": [one.to_json() for one in self.lessons],
        }


def inbox_of(
    registry: Registry, journal: Journal, task: str, limit: int, drift: Callable[[Sequence[str]], Drift] | None
) -> Inbox:
    """The inbox of a hub.

    Args:
        task: only this one; empty: all.
        limit: corrections, unsure answers and lessons that are listed.
        drift: compares inputs with what the router knows; None: groups are not looked for.
    """
    counts = journal.counts()
    names = [task] if task else sorted({*counts} - {""})
    lessons = Lessons(journal)
    found = []
    for name in names:
        said = gather(registry, journal, name)
        # Not right: called wrong, or another right answer was given that could not be compared.
        wrong = [
            one for one in reversed(said.judged) if one.said.good is False or (one.said.good is None and one.right)
        ]
        unsure = sorted(journal.answers(name, unjudged=True), key=lambda one: one.confidence or 0.0)
        newest = next(iter(lessons.all(name)), None)
        kept = counts.get(name, {}).get("answers", 0)
        found.append(TaskInbox(name, kept, said, wrong[:limit], unsure[:limit], newest))
    everything = [*journal.answers()]
    unknown = [one for one in everything if one.out_of_distribution or not one.task]
    groups = None
    if not task and drift is not None and len(unknown) >= UNKNOWN:
        groups = drift(texts_of(everything[-MOST:]))
    return Inbox(found, len(unknown), groups, lessons=lessons.all(task or None)[:limit])


def check_known(registry: Registry, journal: Journal, task: str) -> None:
    """Raise for a task that the hub does not have, and of which nothing is kept.

    Raises:
        UnknownNameError: with the names that are known.
    """
    known = {one.name for one in registry.tasks()} | set(journal.counts()) - {""}
    if task and task not in known:
        raise UnknownNameError("task", task, known)


def export_rows(registry: Registry, file: Path, task: str = "") -> int:
    """Write every kept answer as a line of JSON, with what was said of it and why `learn` leaves it out, oldest first;
    with the right answers filled in, `say_rows` reads them. How many there were.

    Args:
        task: only this one's.

    Raises:
        UsageError: the file is there already, or the task is unknown.
        StorageError: the disk refuses.
    """
    journal = Journal(registry.path)
    check_known(registry, journal, task)
    refuse_inside(file, registry.path, "write to a folder outside of it")
    if file.exists():
        raise UsageError(f"{file} is there already", "name another file, or remove it")
    said = {one.kept.id: one for one in journal.judged()}
    why: dict[str, str] = {}
    for name in {one.said.task for one in said.values()}:
        why |= gather(registry, journal, name).clean.left_out
    rows = [_correction(said[one.id], why) if one.id in said else _row(one) for one in journal.answers()]
    rows = [row for row in rows if not task or row["task"] == task]
    with storage_errors(file):
        atomic_write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def _row(one: KeptAnswer) -> dict[str, Any]:
    return {
        "id": one.id,
        "at": one.at,
        "task": one.task,
        "adapter": one.ref,
        "text": one.example.input or one.example.instruction,
        "prediction": one.answer,
        "confidence": one.confidence,
        "routing": one.routing,
        "out_of_distribution": one.out_of_distribution,
    }


def _correction(one: Judged, left_out: Mapping[str, str] | None = None) -> dict[str, Any]:
    about = {"correct": one.said.good, "answer": one.said.right, "lesson": one.said.lesson}
    if left_out and one.kept.id in left_out:
        about["left_out"] = left_out[one.kept.id]
    return {**_row(one.kept), "task": one.said.task, **about}
