"""Lessons: what was made of the feedback that had gathered for a task, step by step, each with its reason.

A lesson begins as `gathered` (its rows are in a file, nothing is trained), and ends as `promoted`, `refused`, `rolled
back` or `failed`; in between its version may answer a share of the requests, as a `canary`. A lesson is begun in the
same transaction that takes its rows, and its file is written before, so a kill between any two steps leaves something
that the next `learn` goes on with.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub_cl.registry.files import now
from adapterhub_cl.traffic.journal import Journal, Said, as_int

GATHERED, CANARY, PROMOTED, REFUSED = "gathered", "canary", "promoted", "refused"
ROLLED_BACK, FAILED = "rolled back", "failed"
OPEN = (GATHERED, CANARY)
FOLDER = "lessons"  # in the hub: the rows that were learned
_COLUMNS = "id, task, verb, state, served_before, ref, share, began_at, changed_at, reason, detail"


@dataclass(frozen=True)
class Lesson:
    """One lesson.

    Attributes:
        verb: `add-task` or `update`.
        served_before: the version that served the task when it began; empty for a new task.
        ref: the version that was made; empty while there is none.
        share: of the requests, that the canary answers.
        reason: of its state.
        detail: counts and scores, plain JSON.
    """

    task: str
    verb: str
    state: str = GATHERED
    served_before: str = ""
    ref: str = ""
    share: float = 0.0
    reason: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
    began_at: str = ""
    changed_at: str = ""

    def file(self, hub: Path) -> Path:
        """The rows that it learns from."""
        return hub / FOLDER / self.task / f"{self.id}.jsonl"

    def held_back(self, hub: Path) -> Path:
        """The rows that it is measured on; there is no such file where there were few rows."""
        return self.file(hub).with_suffix(".held-back.jsonl")

    def to_json(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("id", *self.__dataclass_fields__)}


class Lessons:
    """The lessons of one hub."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def all(self, task: str | None = None, *, opened: bool = False) -> list[Lesson]:
        """Lessons, newest first.

        Args:
            task: of this one.
            opened: only those that have not ended.
        """
        where, values = ["1"], list[Any]()
        if task is not None:
            where.append("task = ?")
            values.append(task)
        if opened:
            where.append(f"state IN ({', '.join('?' * len(OPEN))})")
            values += OPEN
        sql = f"SELECT {_COLUMNS} FROM lessons WHERE {' AND '.join(where)} ORDER BY id DESC"
        return [_lesson(row) for row in self.journal.read(sql, values)]

    def next_id(self) -> int:
        """The number of the next lesson, which one process at a time may begin."""
        [(number,)] = self.journal.read("SELECT coalesce(max(id), 0) FROM lessons") or [(0,)]
        return int(number) + 1

    def begin(self, lesson: Lesson, said: Collection[Said]) -> Lesson | None:
        """Record a lesson whose file is there, and take the feedback that it was made of. None, and nothing is
        recorded, where some of that was changed, withdrawn or taken since.

        Raises:
            StorageError: the disk refuses; nothing was taken.
        """
        at = now()
        lesson = replace(lesson, began_at=at, changed_at=at)
        with self.journal.writing() as connection:
            if not take(connection, said, lesson.id):
                return None
            connection.execute(
                f"INSERT INTO lessons ({_COLUMNS}) VALUES ({', '.join('?' * len(_COLUMNS.split(', ')))})",
                _values(lesson),
            )
        return lesson

    def move(self, lesson: Lesson, state: str, reason: str, **more: Any) -> Lesson:
        """Record a lesson's next state. One that failed gives back the feedback that it took: another lesson may learn
        it, and users may still change it.

        Args:
            more: further fields that change; those of `detail` are added to what is there.

        Raises:
            StorageError: the disk refuses; the lesson is as it was.
        """
        detail = {**lesson.detail, **more.pop("detail", {})}
        after = replace(lesson, state=state, reason=reason, changed_at=now(), detail=detail, **more)
        with self.journal.writing() as connection:
            connection.execute(
                "UPDATE lessons SET state = ?, ref = ?, share = ?, changed_at = ?, reason = ?, detail = ? WHERE id = ?",
                (after.state, after.ref, after.share, after.changed_at, reason, json.dumps(detail), after.id),
            )
            if state == FAILED:
                connection.execute("UPDATE feedback SET lesson = NULL WHERE lesson = ?", (after.id,))
        return after


def take(connection: sqlite3.Connection, said: Collection[Said], lesson: int) -> bool:
    """Mark what was said as taken by a lesson. False, and nothing is marked, unless all of it is there as it was and
    waits."""
    same = "id = ? AND at = ? AND good IS ? AND right_answer IS ? AND task = ? AND lesson IS NULL"
    ids = []
    for one in said:
        values = (one.id, one.at, as_int(one.good), one.right, one.task)
        ids += connection.execute(f"SELECT id FROM feedback WHERE {same}", values).fetchall()
    if len(ids) < len(said):
        return False
    connection.executemany("UPDATE feedback SET lesson = ? WHERE id = ?", [(lesson, one) for (one,) in ids])
    return True


def _values(lesson: Lesson) -> tuple[Any, ...]:
    row = lesson.to_json()
    return tuple(json.dumps(row[name]) if name == "detail" else row[name] for name in _COLUMNS.split(", "))


def _lesson(row: tuple[Any, ...]) -> Lesson:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Lesson(**{**values, "detail": json.loads(values["detail"])})
