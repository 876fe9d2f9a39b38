"""The reads: portable SQL text in, records out. Does not import SQLAlchemy, so that listing stays fast."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterError, IntegrityError, UnknownNameError, UsageError
from adapterhub_cl.registry.index import REBUILD, Query, Row
from adapterhub_cl.registry.names import Ref, parse_ref
from adapterhub_cl.registry.shapes import (
    LAST_VERSION,
    is_a_name,
    is_an_alias,
    is_count,
    is_number,
    is_text,
    shown,
    sound_details,
)
from adapterhub_cl.registry.shared_record import SharedRecord
from adapterhub_cl.registry.shared_store import SharedStore
from adapterhub_cl.showing import cells_of
from adapterhub_cl.types import KINDS, LATEST, STATUSES, AdapterRecord, Edge, Evaluation, Task

Store = Path | SharedStore  # the folder of the versions, or the store from which they are fetched into one
_VERSION = "v.name, v.version, v.kind, v.task, v.status, v.rank, v.bytes, v.created_at, v.manifest"
_LATEST = """v.version = COALESCE(
    (SELECT a.version FROM aliases a WHERE a.name = v.name AND a.alias = 'latest'),
    (SELECT MAX(w.version) FROM versions w WHERE w.name = v.name AND w.status <> 'deleted'))"""
_NEWEST = "v.version = (SELECT MAX(w.version) FROM versions w WHERE w.name = v.name AND w.status = 'active')"
_SERVES = "(v.name, v.version) IN (SELECT s.name, s.version FROM serving s)"


@dataclass(frozen=True)
class Event:
    """One entry of the hub's log. `at` is UTC, ISO 8601; `ref` is a version, an adapter or a task, or empty."""

    id: int
    at: str
    verb: str
    ref: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "at": self.at, "verb": self.verb, "ref": self.ref, "detail": dict(self.detail)}

    def _cells(self) -> dict[str, Any]:
        told = ", ".join(f"{key} {value}" for key, value in self.detail.items() if value not in (None, "", [], {}))
        return {"at": self.at[:16].replace("T", " "), "verb": self.verb, "ref": self.ref, "detail": told}


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias; `version` is None where it was dropped."""

    version: int | None
    moved_at: str
    reason: str


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation in the index: the version it belongs to, and when it was recorded (UTC, ISO 8601)."""

    ref: str
    created_at: str
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        return {"adapter": self.ref, **self.evaluation.to_json(), "created_at": self.created_at}

    def _cells(self) -> dict[str, Any]:
        return {"adapter": self.ref, **cells_of(self.evaluation), "measured": self.created_at[:16].replace("T", " ")}


class LazyManifest(Mapping[str, Any]):
    """A manifest that is parsed at first access: listing 10,000 adapters should not parse 10,000 texts."""

    def __init__(self, text: str, ref: str) -> None:
        self._text, self._ref = text, ref
        self._parsed: dict[str, Any] | None = None

    def _dict(self) -> dict[str, Any]:
        if self._parsed is None:
            self._parsed = parsed(self._text, f"the manifest of {self._ref}")
        return self._parsed

    def __getitem__(self, key: str) -> Any:
        return self._dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict())

    def __len__(self) -> int:
        return len(self._dict())

    def __repr__(self) -> str:
        return repr(self._dict())


def parsed(text: str, what: str) -> dict[str, Any]:
    """A JSON object from a row of the index.

    Args:
        what: what the object is, for the message.

    Raises:
        IntegrityError: the text is not a JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):  # TypeError: not a string
        found = None
    if not isinstance(found, dict):
        raise IntegrityError(f"the index is damaged: {what} is not valid JSON", REBUILD)
    return found


def _is_version(value: Any) -> bool:
    return is_count(value, LAST_VERSION, least=1)


def _is_task(value: Any) -> bool:
    return value == "" or is_a_name(value)


def _is_parent(value: Any) -> bool:
    return is_text(value) and bool(value)


# What each column of these tables may hold. A valid database file can still contain invalid values.
_SOUND: dict[str, dict[str, Callable[[Any], bool]]] = {
    "versions": {
        "name": is_a_name,
        "version": _is_version,
        "kind": KINDS.__contains__,
        "task": _is_task,
        "status": STATUSES.__contains__,
        "rank": is_count,
        "bytes": is_count,
        "created_at": is_text,
    },
    "aliases": {"name": is_a_name, "alias": is_an_alias, "version": _is_version},
    "serving": {"task": is_a_name, "name": is_a_name, "version": _is_version},
    "lineage": {"child_name": is_a_name, "child_version": _is_version, "parent": _is_parent, "relation": is_text},
    "alias_history": {
        "name": is_a_name,
        "alias": is_an_alias,
        "version": lambda value: value is None or _is_version(value),
        "moved_at": is_text,
        "reason": is_text,
    },
    "evaluations": {"name": is_a_name, "version": _is_version, "task": _is_task, "metric": is_text, "value": is_number},
    "events": {"at": is_text, "verb": is_text, "ref": is_text},
}


def check(query: Query, *tables: str) -> None:
    """Raise IntegrityError if a row contains an invalid value; checks all tables, or only these."""
    for table in tables or _SOUND:
        columns = _SOUND[table]
        for row in query(f"SELECT {', '.join(columns)} FROM {table}"):
            _check_row(table, row)


def _check_row(table: str, row: Row) -> None:
    for (column, is_sound), value in zip(_SOUND[table].items(), row, strict=False):
        if not is_sound(value):
            raise IntegrityError(f"the index is damaged: a row of {table} has {column} = {shown(value)}", REBUILD)


def _record(row: Row, store: Store, aliases: tuple[str, ...]) -> AdapterRecord:
    _check_row("versions", row)
    name, version, kind, task, status, rank, size, created_at, manifest = row
    values = {
        "name": name,
        "version": version,
        "kind": kind,
        "task": task,
        "status": status,
        "rank": rank,
        "bytes": size,
        "created_at": created_at,
        "aliases": aliases,
        "manifest": LazyManifest(manifest, f"{name}@v{version}"),
    }
    if isinstance(store, SharedStore):
        return SharedRecord.of(store, manifest, **values)
    return AdapterRecord(path=store / name / f"v{version}", **values)


def adapters(query: Query, store: Store, *, all_versions: bool, include_rejected: bool) -> list[AdapterRecord]:
    """Every adapter at its latest version, or all versions, sorted by name and version; never deleted ones."""
    rejected = "" if include_rejected else " AND v.status <> 'rejected'"
    return _records(query, store, ("" if all_versions else f" AND {_LATEST}") + rejected)


def current(query: Query, store: Store) -> list[AdapterRecord]:
    """The versions that matter now: see `Registry.current`."""
    return _records(query, store, f" AND ({_LATEST} OR {_NEWEST} OR {_SERVES})")


def _records(query: Query, store: Store, which: str) -> list[AdapterRecord]:
    rows = query(f"SELECT {_VERSION} FROM versions v WHERE v.status <> 'deleted'{which} ORDER BY v.name, v.version")
    named: dict[tuple[str, int], list[str]] = {}
    for name, alias, version in _aliases(query, "SELECT name, alias, version FROM aliases ORDER BY alias"):
        named.setdefault((name, version), []).append(alias)
    return [_record(row, store, tuple(named.get(row[:2], ()))) for row in rows]


def versions(query: Query, store: Store, name: str) -> list[AdapterRecord]:
    """All versions of one adapter that are not deleted, oldest first; empty if there is no such adapter."""
    rows = query(
        f"SELECT {_VERSION} FROM versions v WHERE v.name = :name AND v.status <> 'deleted' ORDER BY v.version",
        name=name,
    )
    named = aliases_of(query, name)
    return [_record(row, store, tuple(sorted(a for a, v in named.items() if v == row[1]))) for row in rows]


def adapter_names(query: Query) -> list[str]:
    """Names with at least one version that is not deleted, sorted."""
    return [row[0] for row in query("SELECT DISTINCT name FROM versions WHERE status <> 'deleted' ORDER BY name")]


def aliases_of(query: Query, name: str) -> dict[str, int]:
    """The aliases of one adapter: alias → version."""
    found = _aliases(query, "SELECT name, alias, version FROM aliases WHERE name = :name", name=name)
    return {alias: version for _, alias, version in found}


def adapters_with_alias(query: Query, alias: str) -> dict[str, int]:
    """The adapters that have an alias: adapter → version, sorted by name."""
    found = _aliases(query, "SELECT name, alias, version FROM aliases WHERE alias = :a ORDER BY name", a=alias)
    return {name: version for name, _, version in found}


def _aliases(query: Query, sql: str, **values: str) -> list[Row]:
    """Checked rows of the aliases: name, alias, version."""
    found = query(sql, **values)
    for row in found:
        _check_row("aliases", row)
    return found


def ambiguous_alias(alias: str, names: Mapping[str, int]) -> UsageError:
    """The error for a bare alias that several adapters have."""
    return UsageError(
        f"{len(names)} adapters have the alias {alias!r}", "name one: " + ", ".join(f"{name}@{alias}" for name in names)
    )


def find(query: Query, store: Store, text: str) -> AdapterRecord:
    ref = parse_ref(text)
    known = versions(query, store, ref.name)
    if not known:
        held = adapters_with_alias(query, ref.name) if ref.version is None and ref.alias is None else {}
        if len(held) > 1:
            raise ambiguous_alias(ref.name, held)
        if not held:
            raise UnknownNameError("adapter", ref.name, adapter_names(query), "list all: cl-adapter list")
        (name, version), *_ = held.items()
        return find(query, store, str(Ref(name, version)))
    return _pick(query, ref, known)


def _pick(query: Query, ref: Ref, known: list[AdapterRecord]) -> AdapterRecord:
    wanted = ref.version
    if wanted is None:
        aliases = aliases_of(query, ref.name)
        alias = ref.alias or LATEST
        if alias not in aliases and alias == LATEST:
            listed = ", ".join(f"{record.ref} ({record.status})" for record in known)
            raise AdapterError(f"{ref.name} has no accepted version", f"name one of its versions: {listed}")
        if alias not in aliases:
            raise UnknownNameError(f"alias of {ref.name}", alias, aliases)
        wanted = aliases[alias]
    for record in known:
        if record.version == wanted:
            return record
    raise UnknownNameError(f"version of {ref.name}", f"v{wanted}", [f"v{record.version}" for record in known])


def events(query: Query, name: str | None, limit: int | None) -> list[Event]:
    """The log, newest first; only the entries of one adapter, task or version if a name is given."""
    where = "" if name is None else " WHERE ref = :name OR substr(ref, 1, :length) = :prefix"
    values: dict[str, Any] = {} if name is None else {"name": name, "length": len(name) + 1, "prefix": f"{name}@"}
    if limit is not None:
        values["count"] = limit
    rows = (
        query(
            f"SELECT id, at, verb, ref, detail FROM events{where} ORDER BY id DESC"
            + (" LIMIT :count" if limit else ""),
            **values,
        )
        if limit != 0
        else []
    )
    for _, *row in rows:
        _check_row("events", tuple(row))
    return [Event(i, at, verb, ref, parsed(detail, f"entry {i} of the log")) for i, at, verb, ref, detail in rows]


def lineage(query: Query, ref: str | None) -> list[Edge]:
    """All edges, or those from one version to its ancestors and its descendants, nearest first."""
    rows = query("SELECT child_name, child_version, parent, relation FROM lineage ORDER BY 1, 2, 3, 4")
    for row in rows:
        _check_row("lineage", row)
    edges = [Edge(f"{name}@v{version}", parent, relation) for name, version, parent, relation in rows]
    if ref is None:
        return edges
    up: dict[str, list[Edge]] = {}
    down: dict[str, list[Edge]] = {}
    for edge in edges:
        up.setdefault(edge.child, []).append(edge)
        down.setdefault(edge.parent, []).append(edge)
    found: dict[Edge, None] = {}
    for ways, towards in ((up, "parent"), (down, "child")):
        seen, frontier = {ref}, [ref]
        while frontier:
            step = [edge for node in frontier for edge in ways.get(node, ())]
            found.update(dict.fromkeys(step))
            frontier = list(dict.fromkeys(n for n in (getattr(edge, towards) for edge in step) if n not in seen))
            seen.update(frontier)
    return list(found)


def evaluations(query: Query, name: str | None, version: int | None, task: str | None) -> list[StoredEvaluation]:
    """Evaluations in the order they were recorded, optionally of one version and on one task."""
    clauses, values = [], {}
    for column, value in (("name", name), ("version", version), ("task", task)):
        if value is not None:
            clauses.append(f"{column} = :{column}")
            values[column] = value
    where = f" WHERE {' AND '.join(clauses)}" if clauses else ""
    rows = query(
        f"SELECT name, version, created_at, task, metric, value, n, data, details FROM evaluations{where} ORDER BY id",
        **values,
    )
    found = []
    for n, v, _, on, metric, value, *_ in rows:
        _check_row("evaluations", (n, v, on, metric, value))
    for n, v, at, on, metric, value, count, data, text in rows:
        details = sound_details(parsed(text, f"a score of {n}@v{v}"))
        found.append(StoredEvaluation(f"{n}@v{v}", at, Evaluation(on, metric, value, count, data, details)))
    return found


def tasks(query: Query) -> list[Task]:
    """All tasks, sorted by name."""
    found = []
    for name, text in query("SELECT name, spec FROM tasks ORDER BY name"):
        spec = parsed(text, f"the task {name}")
        try:
            found.append(Task.from_json(spec))
        except TypeError as error:
            raise IntegrityError(f"the index is damaged: the task {name} cannot be read", REBUILD) from error
    return found


def serving(query: Query) -> dict[str, str]:
    """The serving table: task → `name@vN`, sorted by task."""
    rows = query("SELECT task, name, version FROM serving ORDER BY task")
    for row in rows:
        _check_row("serving", row)
    return {task: f"{name}@v{version}" for task, name, version in rows}


def aliases(query: Query) -> dict[str, dict[str, int]]:
    """The aliases of all adapters, sorted: adapter → alias → version."""
    found: dict[str, dict[str, int]] = {}
    for name, alias, version in _aliases(query, "SELECT name, alias, version FROM aliases ORDER BY name, alias"):
        found.setdefault(name, {})[alias] = version
    return found


def alias_history(query: Query, name: str, alias: str) -> list[AliasMove]:
    """Every move of one alias, oldest first."""
    rows = query(
        "SELECT version, moved_at, reason FROM alias_history WHERE name = :name AND alias = :alias ORDER BY id",
        name=name,
        alias=alias,
    )
    for row in rows:
        _check_row("alias_history", (name, alias, *row))
    return [AliasMove(*row) for row in rows]
