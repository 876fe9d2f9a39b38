"""The journal of a hub: requests and answers that were kept, what users said of them, and the lessons taken from that.

One SQLite file, `traffic.db`, which only its owner may read. What is deleted is overwritten, so that nothing of a
forgotten task is left in the file.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.registry.files import now
from adapterhub_cl.registry.index import index_errors
from adapterhub_cl.traffic.tables import make_tables
from adapterhub_cl.types import Example

FILE = "traffic.db"
LEARN_LOCK = ".learn.lock"  # held by the process that learns from it
WAIT_S = 30.0  # for another process that writes
DAMAGED = "move it away; the hub's adapters do not need it"


@dataclass(frozen=True)
class KeptAnswer:
    """A request with its answer.

    Attributes:
        id: as the client got it.
        task: empty where the base answered without one.
        ref: the version that answered, or `base`.
        confidence: in the answer; `routing` is the router's in the task, None where it was not asked.
        conversation: a hash that all requests of one conversation share.
        asked_by: the name of the API key.
    """

    id: str
    at: str
    task: str
    ref: str
    example: Example
    answer: str
    confidence: float | None
    routing: float | None
    out_of_distribution: bool
    conversation: str = ""
    asked_by: str = ""


@dataclass(frozen=True)
class Said:
    """What a user said of an answer.

    Attributes:
        good: whether it was right; None where only the right answer was given and could not be compared.
        right: the right answer, where the user gave it.
        task: of the right answer.
        lesson: the number of the lesson that took it; None: it waits.
        labelled: whether the right answer was given as a label.
    """

    id: str
    good: bool | None
    right: str | None
    task: str
    said_by: str = ""
    at: str = ""
    lesson: int | None = None
    labelled: bool = False


@dataclass(frozen=True)
class Judged:
    """An answer with what was said of it."""

    kept: KeptAnswer
    said: Said

    @property
    def right(self) -> str | None:
        """The right answer, as far as it is known."""
        return self.said.right if self.said.right is not None else self.kept.answer if self.said.good else None


@dataclass(frozen=True)
class TrafficDay:
    """What was kept of one day (UTC).

    Attributes:
        confidence: the router's, on average over the `routed` answers.
        unknown: answers that the base gave because no task fitted.
    """

    day: str
    answers: int
    routed: int
    confidence: float | None
    unknown: int


class Journal:
    """The journal of one hub. Its file is made when something is first written; reading a hub without one finds
    nothing. Safe with several threads and processes.

    Args:
        hub: the hub's directory.
    """

    def __init__(self, hub: Path) -> None:
        self.file = hub / FILE

    # -- requests --------------------------------------------------------------------------------

    def keep(self, rows: Sequence[KeptAnswer]) -> None:
        """Add answers; one whose id is there already is left as it is.

        Raises:
            StorageError: the disk refuses; nothing was added.
        """
        values = [
            {
                **asdict(row),
                "example": json.dumps(row.example.to_json(), ensure_ascii=False),
                "out_of_distribution": int(row.out_of_distribution),
            }
            for row in rows
        ]
        if values:
            with self.writing() as connection:
                connection.executemany(_INSERT, values)

    def get(self, answer: str) -> KeptAnswer:
        """One answer.

        Raises:
            UnknownNameError: no such id is kept.
        """
        for row in self.read(f"SELECT {_ANSWER} FROM answers WHERE id = ?", (answer,)):
            return _kept(row)
        hint = "serve --log keeps answers, a second after it gave them; ids are those of its responses"
        raise UnknownNameError("answer", answer, (), hint)

    def answers(self, task: str | None = None, since: str = "", *, unjudged: bool = False) -> Iterator[KeptAnswer]:
        """Answers, oldest first.

        Args:
            task: only of this one (empty: of none).
            since: not before this time.
            unjudged: only those of which nobody said anything.
        """
        where, values = ["at >= ?"], [since]
        if task is not None:
            where.append("task = ?")
            values.append(task)
        if unjudged:
            where.append("NOT EXISTS (SELECT 1 FROM feedback f WHERE f.id = answers.id)")
        sql = f"SELECT {_ANSWER} FROM answers WHERE {' AND '.join(where)} ORDER BY at, id"
        return (_kept(row) for row in self.read(sql, values))

    # -- feedback --------------------------------------------------------------------------------

    def say(self, *said: Said) -> None:
        """Attach what users said; what was said of the same answer before is replaced, and waits for a lesson again.

        Raises:
            UnknownNameError: no such id is kept.
            StorageError: the disk refuses; nothing was changed.
        """
        for one in said:
            self.get(one.id)
        with self.writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO feedback (id, at, good, right_answer, task, said_by, lesson, labelled) "
                "VALUES (?, ?, ?, ?, ?, ?, NULL, ?)",
                [(s.id, s.at or now(), as_int(s.good), s.right, s.task, s.said_by, int(s.labelled)) for s in said],
            )

    def withdraw(self, *ids: str) -> list[str]:
        """Take back what was said of answers: of all of them, or of none.

        Returns:
            the ids that a lesson has taken already.

        Raises:
            UnknownNameError: no such answer is kept.
            UsageError: nothing was said of one.
            StorageError: the disk refuses; nothing was changed.
        """
        for one in ids:
            self.get(one)
        with self.writing() as connection:
            taken = []
            for one in dict.fromkeys(ids):
                row = connection.execute("DELETE FROM feedback WHERE id = ? RETURNING lesson", (one,)).fetchone()
                if row is None:
                    raise UsageError(
                        f"nothing was said of the answer {one}", "cl-adapter inbox --export FILE lists them"
                    )
                taken += [one] if row[0] is not None else []
        self._overwrite()
        return taken

    def judged(self, task: str | None = None, *, waiting: bool | None = None, since: str = "") -> list[Judged]:
        """Answers with what was said of them, oldest first.

        Args:
            task: only of this one.
            waiting: only those that no lesson has taken yet (or that one has).
            since: answered not before this time.
        """
        where, values = ["a.at >= ?"], [since]
        if task is not None:
            where.append("f.task = ?")
            values.append(task)
        if waiting is not None:
            where.append(f"f.lesson IS {'' if waiting else 'NOT '}NULL")
        columns = ", ".join(f"a.{name}" for name in _ANSWER.split(", "))
        sql = (
            f"SELECT {columns}, f.good, f.right_answer, f.task, f.said_by, f.at, f.lesson, f.labelled FROM answers a "
            f"JOIN feedback f ON f.id = a.id WHERE {' AND '.join(where)} ORDER BY a.at, a.id"
        )
        found = []
        for row in self.read(sql, values):
            kept, (good, right, of, by, at, lesson, labelled) = _kept(row[:-7]), row[-7:]
            verdict = None if good is None else bool(good)
            found.append(Judged(kept, Said(kept.id, verdict, right, of, by, at, lesson, bool(labelled))))
        return found

    # -- keeping it small ------------------------------------------------------------------------

    def counts(self) -> dict[str, dict[str, int]]:
        """Task → how many answers are kept, how many were judged, and how many of these wait for a lesson."""
        found: dict[str, dict[str, int]] = {}
        empty = {"answers": 0, "judged": 0, "waiting": 0}
        for task, number in self.read("SELECT task, count(*) FROM answers GROUP BY task ORDER BY task"):
            found.setdefault(task, dict(empty))["answers"] = number
        sql = "SELECT task, count(*), sum(lesson IS NULL) FROM feedback GROUP BY task ORDER BY task"
        for task, number, waiting in self.read(sql):
            found.setdefault(task, dict(empty)).update(judged=number, waiting=waiting)
        return found

    def days(self, most: int) -> list[TrafficDay]:
        """The last days with kept answers, newest first; at most so many, and none that is older."""
        since = (datetime.now(UTC) - timedelta(days=most)).isoformat(timespec="milliseconds")
        sql = (
            "SELECT substr(at, 1, 10), count(*), count(routing), avg(routing), sum(out_of_distribution) FROM answers "
            "WHERE at >= ? GROUP BY 1 ORDER BY 1 DESC"
        )
        return [TrafficDay(*row) for row in self.read(sql, (since,))][:most]

    def count(self, task: str, refs: Collection[str] = ()) -> int:
        """How many answers `drop` would drop of a task and these versions."""
        marks = ", ".join("?" * len(refs))
        sql = (
            "SELECT count(*) FROM answers WHERE task = ? OR id IN (SELECT id FROM feedback WHERE task = ?) "
            f"OR ref IN ({marks})"
        )
        found = self.read(sql, [task, task, *refs])
        lessons = self.read("SELECT count(*) FROM lessons WHERE task = ?", [task])
        return int(found[0][0]) + int(lessons[0][0]) if found else 0

    def expire(self, days: float) -> int:
        """Drop answers that are older, with what was said of them; how many there were.

        Raises:
            StorageError: the disk refuses; nothing was dropped.
        """
        before = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
        return self.drop(before=before)

    def drop(
        self,
        *,
        task: str | None = None,
        lessons: bool = False,
        refs: Collection[str] = (),
        ids: Collection[str] = (),
        before: str = "",
    ) -> int:
        """Drop answers for good, with what was said of them; how many there were.

        Args:
            task: those of a task, and those whose right answer was given for it.
            lessons: the task's lessons too: it is forgotten. Otherwise they stay, since one may have a canary.
            refs: those that one of these versions gave.
            ids: these.
            before: those before this time.

        Raises:
            StorageError: the disk refuses; nothing was dropped.
        """
        if not self.file.exists():
            return 0
        count = 0
        with self.writing() as connection:

            def gone(sql: str, *values: Any) -> int:
                return connection.execute(sql, values).rowcount

            if task is not None:
                count += gone("DELETE FROM answers WHERE id IN (SELECT id FROM feedback WHERE task = ?)", task)
                count += gone("DELETE FROM answers WHERE task = ?", task)
            if task is not None and lessons:
                gone("DELETE FROM lessons WHERE task = ?", task)
            for ref in refs:
                count += gone("DELETE FROM answers WHERE ref = ?", ref)
            for one in ids:
                count += gone("DELETE FROM answers WHERE id = ?", one)
            if before:
                count += gone("DELETE FROM answers WHERE at < ?", before)
        self._overwrite()
        return count

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed at the end of the block, rolled back on any error.

        Raises:
            StorageError: the disk refuses; nothing was changed.
        """
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query; none where there is no journal yet.

        Raises:
            IntegrityError: the file is damaged.
            StorageError: it cannot be opened.
        """
        if not self.file.exists():
            return []
        with self._connected() as connection:
            return connection.execute(sql, tuple(values)).fetchall()

    # -- inside ----------------------------------------------------------------------------------

    def _overwrite(self) -> None:
        """Leave nothing of deleted rows in the write-ahead log."""
        with self._connected() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with index_errors(str(self.file), "journal", DAMAGED):
            if not self.file.exists():
                with storage_errors(self.file):
                    os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self.file, timeout=WAIT_S, isolation_level=None)) as connection:
                for name, value in (("foreign_keys", "ON"), ("secure_delete", "ON"), ("synchronous", "FULL")):
                    connection.execute(f"PRAGMA {name} = {value}")
                make_tables(connection, self.file)
                yield connection


_ANSWER = "id, at, task, ref, example, answer, confidence, routing, out_of_distribution, conversation, asked_by"
_INSERT = (
    f"INSERT OR IGNORE INTO answers ({_ANSWER}) VALUES (:id, :at, :task, :ref, :example, :answer, :confidence, "
    ":routing, :out_of_distribution, :conversation, :asked_by)"
)


def _kept(row: Sequence[Any]) -> KeptAnswer:
    values = dict(zip(_ANSWER.split(", "), row, strict=True))
    values["example"] = Example.from_json(json.loads(values["example"]))
    values["out_of_distribution"] = bool(values["out_of_distribution"])
    return KeptAnswer(**values)


def as_int(good: bool | None) -> int | None:
    return None if good is None else int(good)


def texts_of(rows: Iterable[KeptAnswer]) -> list[str]:
    """The bare inputs, as a router sees them."""
    return [row.example.input or row.example.instruction for row in rows]
