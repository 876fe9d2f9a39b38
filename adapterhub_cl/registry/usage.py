"""Counters: how many requests each version answered, for which task, and how confident the router was.

An inference engine adds to them in bulk from time to time; answering a request writes nothing. There is one row per
version and task. Requests that the base answered are counted under `base`, which in the table is version 0 of that
name: versions start at 1, so an adapter called `base` is never confused with it.

Deleting a version or forgetting a task deletes its rows; counts that an engine reports afterwards are dropped. The
counters exist only in the index: a rebuild copies them if the old index can be read, otherwise they start at zero.
Reading does not import SQLAlchemy; a read-only hub that was made before counters existed has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import StorageError, UsageError
from adapterhub_cl.registry import queries
from adapterhub_cl.registry.core import RegistryCore
from adapterhub_cl.registry.index import Query, Row
from adapterhub_cl.registry.names import parse_ref
from adapterhub_cl.types import BASE

if TYPE_CHECKING:
    from sqlalchemy import Connection

_BEFORE = "0001"  # the schema without counters
_COLUMNS = "name, version, task, requests, routed, fallbacks, confidence_sum, last_at"
_ADD = f"""INSERT INTO requests ({_COLUMNS})
    VALUES (:name, :version, :task, :requests, :routed, :fallbacks, :confidence_sum, :last_at)
    ON CONFLICT (name, version, task) DO UPDATE SET
        requests = requests.requests + excluded.requests,
        routed = requests.routed + excluded.routed,
        fallbacks = requests.fallbacks + excluded.fallbacks,
        confidence_sum = requests.confidence_sum + excluded.confidence_sum,
        last_at = CASE WHEN excluded.last_at > requests.last_at THEN excluded.last_at ELSE requests.last_at END"""


@dataclass(frozen=True)
class Counted:
    """Requests that one version answered for one task since they were last recorded.

    Attributes:
        ref: `name@vN`, or `base`.
        task: empty if there was none.
        routed: how many of them the router sent here; the others named their adapter or task.
        fallbacks: how many went to the base because the router found them out of distribution.
        confidence_sum: the router's confidence, summed over `routed` and `fallbacks`.
        last_at: when the last one was answered; ISO 8601, UTC if it has no time zone.
    """

    ref: str
    task: str
    requests: int
    routed: int
    fallbacks: int
    confidence_sum: float
    last_at: str

    def __post_init__(self) -> None:
        if min(self.requests - self.routed - self.fallbacks, self.routed, self.fallbacks) < 0 or not self.requests:
            counts = f"{self.requests} requests, {self.routed} routed, {self.fallbacks} fallbacks"
            raise UsageError(
                f"invalid counts for {self.ref}: {counts}", "counts are at least 0, and routed + fallbacks ≤ requests"
            )
        if self.fallbacks and self.ref != BASE:
            raise UsageError(f"{self.ref} cannot be a fallback: only the base can", f"count it under {BASE!r}")
        if not math.isfinite(self.confidence_sum):
            raise UsageError(f"the confidence of {self.ref} is {self.confidence_sum}", "give a finite number")


@dataclass(frozen=True)
class Usage:
    """The counters of one version and one task.

    Attributes:
        ref: `name@vN`, or `base`.
        task: empty if the requests had no known task.
        mean_confidence: the router's, over `routed` and `fallbacks`; None if the router chose nothing.
        last_at: UTC, ISO 8601.
    """

    ref: str
    task: str
    requests: int
    routed: int
    fallbacks: int
    mean_confidence: float | None
    last_at: str

    def to_json(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.__dataclass_fields__}


class Counters(RegistryCore):
    def count_requests(self, rows: Iterable[Counted]) -> int:
        """Add to the counters, in one transaction; safe with other processes doing the same.

        Counts of versions that no longer exist are dropped; an unknown task is counted under an empty name.

        Returns:
            How many requests were counted.

        Raises:
            UsageError: a reference that names no version, or an invalid time.
            StorageError: the hub cannot be written; nothing was counted.
        """
        found = [_row(counted) for counted in rows]
        if not found:
            return 0
        if self._index.file is not None and not self._index.file.exists():
            raise StorageError(
                f"the index {self._index.file} is gone", "if the hub was moved, open it at its new location"
            )
        with self._write(mirrored=False) as (connection, _):
            return add(connection, found)

    def usage(self, ref: str | None = None) -> list[Usage]:
        """The counters of all versions, of one, or of the base (`base`), sorted by version and task.

        Raises:
            UnknownNameError: no such version.
        """
        with self._index.reading() as query:
            if ref is None:
                return [_usage(row) for row in read(query)]
            wanted = (BASE, 0)
            if ref != BASE:
                record = queries.find(query, self.versions_in, ref)
                wanted = (record.name, record.version)
            return [_usage(row) for row in read(query) if row[:2] == wanted]


def read(query: Query) -> list[Row]:
    """All rows of the table; none if the index has the schema before it."""
    if query("SELECT version_num FROM alembic_version") == [(_BEFORE,)]:
        return []
    return query(f"SELECT {_COLUMNS} FROM requests ORDER BY name, version, task")


def add(connection: Connection, rows: Sequence[Row]) -> int:
    """Add rows to the table; see `Counters.count_requests`."""
    from sqlalchemy import text

    versions = connection.execute(text("SELECT name, version FROM versions WHERE status <> 'deleted'"))
    there = {(BASE, 0), *((row[0], row[1]) for row in versions)}
    tasks = set(connection.scalars(text("SELECT name FROM tasks")))
    columns = _COLUMNS.split(", ")
    values = [
        {**dict(zip(columns, row, strict=True)), "task": row[2] if row[2] in tasks else ""}
        for row in rows
        if tuple(row[:2]) in there
    ]
    if values:
        connection.execute(text(_ADD), values)
    return sum(value["requests"] for value in values)


def _row(counted: Counted) -> Row:
    name, version = BASE, 0
    if counted.ref != BASE:
        ref = parse_ref(counted.ref)
        if ref.version is None:
            raise UsageError(f"{counted.ref!r} is not a version", f"count it under {ref.name}@v1, for example")
        name, version = ref.name, ref.version
    try:
        at = datetime.fromisoformat(counted.last_at)
    except ValueError as error:
        raise UsageError(f"{counted.last_at!r} is not a time", "use ISO 8601") from error
    at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    c = counted
    confidence, last_at = float(c.confidence_sum), at.isoformat(timespec="milliseconds")
    return (name, version, c.task, c.requests, c.routed, c.fallbacks, confidence, last_at)


def _usage(row: Row) -> Usage:
    name, version, task, requests, routed, fallbacks, confidence, last_at = row
    ref = f"{name}@v{version}" if version else BASE
    mean = confidence / (routed + fallbacks) if routed + fallbacks else None
    return Usage(ref, task, requests, routed, fallbacks, mean, last_at)
