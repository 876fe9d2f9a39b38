"""What the live page shows: the report's facts, and beside them canaries, traffic, lessons and what waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.registry import Registry, Usage
from adapterhub_cl.registry.canaries import Canary
from adapterhub_cl.reporting.facts import Facts, GateFacts, TaskFacts, VersionFacts
from adapterhub_cl.reporting.gathering import gather
from adapterhub_cl.server.fresh import Fresh
from adapterhub_cl.traffic.journal import Journal, TrafficDay
from adapterhub_cl.traffic.lesson_book import OPEN, Lesson, Lessons

T = TypeVar("T")
ROWS = 50  # of a table on one page
DAYS, LESSONS = 14, 20


@dataclass(frozen=True)
class TaskRow:
    """A task, and what serves it.

    Attributes:
        version: the one that serves it; None if nothing does.
        lesson: the newest one.
        requests: that were answered for it, by whatever version.
        confidence: the router's in the task, on average; None if it was never asked.
        waiting: judged answers that no lesson has taken.
    """

    task: TaskFacts
    version: VersionFacts | None
    canary: Canary | None
    lesson: Lesson | None
    requests: int
    confidence: float | None
    waiting: int

    @property
    def retention(self) -> float | None:
        """The share of the score before, that a merged, distilled or pruned version retains."""
        return None if self.version is None else self.version.retention.get(self.task.name)

    @property
    def words(self) -> str:
        """What a search looks at."""
        return f"{self.task.name} {self.task.served_by} {self.canary.ref if self.canary else ''}"


@dataclass(frozen=True)
class VersionRow:
    """A version, with the gate's decision when it was made; None where it had nothing to decide."""

    version: VersionFacts
    gate: GateFacts | None

    @property
    def worst(self) -> tuple[str, float] | None:
        """The task that lost most (or gained least), and its change."""
        effects = self.gate.effects if self.gate else ()
        one = max(effects, key=lambda effect: effect.drop, default=None)
        return None if one is None else (one.task, -one.drop)

    @property
    def words(self) -> str:
        found = self.version
        return " ".join((found.ref, found.kind, found.status, *found.tasks, *found.aliases))


@dataclass(frozen=True)
class LiveFacts:
    """A hub as it was a moment ago.

    Attributes:
        inbox: task → how many answers are kept, judged, and waiting.
        notes: what could not be read.
    """

    facts: Facts
    canaries: Mapping[str, Canary] = field(default_factory=dict)
    lessons: Sequence[Lesson] = ()
    inbox: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    days: Sequence[TrafficDay] = ()
    notes: Sequence[str] = ()

    @cached_property
    def tasks(self) -> list[TaskRow]:
        versions = {version.ref: version for version in self.facts.versions}
        newest: dict[str, Lesson] = {}
        for lesson in self.lessons:
            newest.setdefault(lesson.task, lesson)
        asked: dict[str, list[Usage]] = {}
        for row in self.facts.usage:
            asked.setdefault(row.task, []).append(row)
        return [
            TaskRow(
                task,
                versions.get(task.served_by),
                self.canaries.get(task.name),
                newest.get(task.name),
                sum(row.requests for row in asked.get(task.name, ())),
                mean_confidence(asked.get(task.name, ())),
                self.inbox.get(task.name, {}).get("waiting", 0),
            )
            for task in self.facts.tasks
        ]

    @cached_property
    def versions(self) -> list[VersionRow]:
        """All versions, newest first."""
        gates = {gate.ref: gate for gate in self.facts.gates if not gate.promotion}
        return [VersionRow(version, gates.get(version.ref)) for version in reversed(self.facts.versions)]

    @cached_property
    def traffic(self) -> list[Usage]:
        """The counters, the busiest first."""
        return sorted(self.facts.usage, key=lambda row: (-row.requests, row.ref, row.task))

    @cached_property
    def totals(self) -> dict[str, Any]:
        """Figures over the whole hub."""
        usage = self.facts.usage
        decided = sum(row.routed + row.fallbacks for row in usage)
        scores = [row.task.now.value for row in self.tasks if row.task.now is not None]
        return {
            "requests": sum(row.requests for row in usage),
            "outside": sum(row.fallbacks for row in usage) / decided if decided else None,
            "confidence": mean_confidence(usage),
            "score": math.fsum(scores) / len(scores) if scores else None,
            "scored": len(scores),
            "served": sum(bool(row.task.served_by) for row in self.tasks),
            "waiting": sum(counts.get("waiting", 0) for counts in self.inbox.values()),
            "kept": sum(counts.get("answers", 0) for counts in self.inbox.values()),
            "open": sum(lesson.state in OPEN for lesson in self.lessons),
        }


@dataclass(frozen=True)
class Sheet(Generic[T]):
    """A part of a long table.

    Attributes:
        query: what was searched for.
        found: rows that fit it; `total`: all rows.
        number, last: this sheet's number, from 1, and the last one's.
    """

    rows: Sequence[T]
    query: str
    found: int
    total: int
    number: int
    last: int


def sheet(rows: Sequence[T], words: Callable[[T], str], query: str, number: str) -> Sheet[T]:
    """The rows that contain the words of a query, and of these one sheet; a number that does not exist gives the
    nearest."""
    query = " ".join(query.split())[:200]
    wanted = query.casefold().split()
    found = rows
    if wanted:
        found = [row for row in rows if all(word in words(row).casefold() for word in wanted)]
    last = max(1, -(-len(found) // ROWS))
    at = int(number) if number.isdecimal() and len(number) < 9 else 1
    at = min(last, max(1, at))
    return Sheet(found[(at - 1) * ROWS : at * ROWS], query, len(found), len(rows), at, last)


def mean_confidence(rows: Sequence[Usage]) -> float | None:
    """The router's confidence over all requests that it decided; None if there are none."""
    known = [(row.mean_confidence, row.routed + row.fallbacks) for row in rows if row.mean_confidence is not None]
    weight = sum(count for _, count in known)
    return sum(mean * count for mean, count in known) / weight if weight else None


def fresh_facts(registry: Registry) -> Fresh[LiveFacts]:
    """The facts of a hub, read again when they are asked for and old.

    Raises:
        IntegrityError, StorageError: `get`, where the index cannot be read.
    """
    return Fresh(lambda: live_facts(registry))


def live_facts(registry: Registry) -> LiveFacts:
    """The facts of a hub now. A journal that cannot be read is noted, and the rest is shown.

    Raises:
        IntegrityError, StorageError: the index cannot be read.
    """
    facts, canaries = gather(registry), registry.canaries()
    journal = Journal(registry.path)
    try:
        lessons, inbox, days = Lessons(journal).all(), journal.counts(), journal.days(DAYS)
    except (AdapterHubError, ValueError, TypeError) as error:
        note = f"kept answers and lessons were skipped: {getattr(error, 'message', 'they cannot be read')}"
        return LiveFacts(facts, canaries, notes=(*facts.notes, note))
    return LiveFacts(facts, canaries, lessons, inbox, days, facts.notes)
