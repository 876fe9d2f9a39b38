"""The writes: every change to the index is one of these functions, run inside `Index.writing()`.

Imports SQLAlchemy; the registry imports this module only when it writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from adapterhub_cl.registry import schema, shapes
from adapterhub_cl.registry.files import now
from adapterhub_cl.types import LATEST, PRODUCTION, Evaluation, Task

# What the log says of a version whose manifest is unreadable, and of one that has become readable again.
UNREADABLE, READABLE = "unreadable", "readable"
_v, _a, _h = schema.versions, schema.aliases, schema.alias_history


def next_version(connection: Connection, name: str, directory: Path) -> int:
    """One more than the highest version in the index, in its log and on disk: a number is never used twice."""
    highest = connection.scalar(select(func.max(_v.c.version)).where(_v.c.name == name)) or 0
    noted = connection.scalars(select(schema.events.c.ref).where(schema.events.c.verb == UNREADABLE))
    kept = [ref[1] for text in noted if (ref := shapes.version_of(text)) is not None and ref[0] == name]
    on_disk = [int(p.name[1:]) for p in directory.glob("v*") if p.name[1:].isdigit()] if directory.exists() else []
    return max([highest, *kept, *on_disk]) + 1


def is_used(connection: Connection, name: str, version: int) -> bool:
    """Whether an adapter has, or had, a version of this number."""
    noted = connection.scalars(select(schema.events.c.ref).where(schema.events.c.verb == UNREADABLE))
    there = select(_v.c.version).where(_v.c.name == name, _v.c.version == version)
    return connection.scalar(there) is not None or f"{name}@v{version}" in noted


def newest_active(connection: Connection, name: str) -> int | None:
    """The highest version of an adapter that is neither rejected nor deleted."""
    found = connection.scalar(select(func.max(_v.c.version)).where(_v.c.name == name, _v.c.status == "active"))
    return None if found is None else int(found)


def insert_version(
    connection: Connection, manifest: Mapping[str, Any], text: str, forgotten: Mapping[str, str] | None = None
) -> None:
    """Insert the rows that a manifest alone determines: adapter, version, lineage, evaluations, task.

    A rejected version does not change the settings of a known task: another version continues to serve it.

    Args:
        forgotten: task → time; what older manifests say of such a task is not inserted.
    """
    old = {task for task, until in (forgotten or {}).items() if manifest["created_at"] <= until}
    name, version = manifest["name"], manifest["version"]
    if connection.scalar(select(schema.adapters.c.name).where(schema.adapters.c.name == name)) is None:
        connection.execute(insert(schema.adapters).values(name=name, created_at=manifest["created_at"]))
    connection.execute(
        insert(_v).values(
            name=name,
            version=version,
            kind=manifest["kind"],
            task=manifest["task"],
            status=manifest["status"],
            rank=manifest["rank"],
            bytes=manifest["bytes"],
            created_at=manifest["created_at"],
            manifest_sha256=hashlib.sha256(text.encode()).hexdigest(),
            manifest=text,
        )
    )
    edges = {(edge["parent"], edge["relation"]) for edge in manifest["lineage"]}
    if edges:
        connection.execute(
            insert(schema.lineage),
            [{"child_name": name, "child_version": version, "parent": p, "relation": r} for p, r in sorted(edges)],
        )
    scores = [Evaluation(**row) for row in manifest["evaluations"] if row["task"] not in old]
    add_evaluations(connection, name, version, scores, manifest["created_at"])
    spec, t = manifest["task_spec"], schema.tasks
    if spec and spec.get("name") not in old:
        known = connection.scalar(select(t.c.name).where(t.c.name == spec["name"])) is not None
        if manifest["status"] == "active" or not known:
            put_task(connection, Task.from_json(spec), manifest["created_at"])


def apply_moves(connection: Connection, manifest: Mapping[str, Any], *, replay: bool = False) -> None:
    """Carry out what publishing moves: the alias `latest` and the serving row, both only to an accepted version.

    Args:
        connection: inside a write transaction.
        manifest: of a version that has its rows.
            replay: versions are processed in order, as in a rebuild; otherwise only the newest one moves anything, so
            that a version that is adopted late does not displace a newer one.
    """
    name, version, moves = manifest["name"], manifest["version"], manifest["published"]
    if manifest["status"] != "active":
        return
    if replay:
        passed = connection.scalar(select(_a.c.version).where(_a.c.name == name, _a.c.alias == LATEST))
    else:
        newer = (_v.c.name == name) & (_v.c.status == "active") & (_v.c.version > version)
        passed = connection.scalar(select(func.max(_v.c.version)).where(newer))
    if passed is not None and passed > version:
        return
    if moves["move_latest"]:
        move_alias(connection, name, LATEST, version, moves["verb"])
    for task in dict.fromkeys([manifest["task"], *manifest.get("takes_over", ())]):
        if moves["serve"] and task and not production_serves(connection, task):
            set_serving(connection, task, name, version)


def publish_event(connection: Connection, manifest: Mapping[str, Any]) -> None:
    detail = {key: manifest[key] for key in ("kind", "task", "status")}
    detail |= origin_of(manifest)
    ref = f"{manifest['name']}@v{manifest['version']}"
    add_event(connection, manifest["published"]["verb"], ref, detail, manifest["created_at"])


def origin_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the log says of a version that a rebase made: which version of which hub and base it takes the place of, and
    both scores."""
    told = manifest.get("rebased_from")
    if not isinstance(told, Mapping):
        return {}
    base = told.get("base")
    source = base.get("source") if isinstance(base, Mapping) else None
    found = {"from": f"{told.get('ref')} of {told.get('hub')} on {source}"}
    return {**found, **{key: told[key] for key in ("metric", "old_score", "new_score") if told.get(key) is not None}}


def production_serves(connection: Connection, task: str) -> bool:
    """Whether the version that serves the task is the one its adapter's alias `production` names."""
    s = schema.serving
    pinned = select(s.c.task).join(_a, (_a.c.name == s.c.name) & (_a.c.version == s.c.version))
    return connection.scalar(pinned.where(s.c.task == task, _a.c.alias == PRODUCTION)) is not None


def set_serving(connection: Connection, task: str, name: str, version: int) -> None:
    values = {"name": name, "version": version, "moved_at": now()}
    s = schema.serving
    if not connection.execute(update(s).where(s.c.task == task).values(values)).rowcount:
        connection.execute(insert(s).values(task=task, **values))


def move_alias(connection: Connection, name: str, alias: str, version: int, reason: str) -> None:
    """Point an alias to a version and record the move."""
    here = (_a.c.name == name) & (_a.c.alias == alias)
    if not connection.execute(update(_a).where(here).values(version=version)).rowcount:
        connection.execute(insert(_a).values(name=name, alias=alias, version=version))
    _remember(connection, name, alias, version, reason)


def drop_alias(connection: Connection, name: str, alias: str, reason: str) -> None:
    """Remove an alias and record that it was removed."""
    connection.execute(delete(_a).where(_a.c.name == name, _a.c.alias == alias))
    _remember(connection, name, alias, None, reason)


def _remember(connection: Connection, name: str, alias: str, version: int | None, reason: str) -> None:
    connection.execute(insert(_h).values(name=name, alias=alias, version=version, moved_at=now(), reason=reason))


def add_event(
    connection: Connection, verb: str, ref: str, detail: Mapping[str, Any] | None = None, at: str | None = None
) -> None:
    values = {"at": at or now(), "verb": verb, "ref": ref, "detail": json.dumps(dict(detail or {}), sort_keys=True)}
    connection.execute(insert(schema.events).values(values))


def add_evaluations(
    connection: Connection, name: str, version: int, evaluations: Sequence[Evaluation], at: str
) -> None:
    if not evaluations:
        return
    rows = [
        {
            "name": name,
            "version": version,
            "task": e.task,
            "metric": e.metric,
            "value": float(e.value),
            "n": e.n,
            "data": e.data,
            "details": json.dumps(dict(e.details), sort_keys=True),
            "created_at": at,
        }
        for e in evaluations
    ]
    connection.execute(insert(schema.evaluations), rows)


def put_task(connection: Connection, task: Task, at: str | None = None) -> None:
    at = at or now()
    values = {"spec": json.dumps(task.to_json(), sort_keys=True), "updated_at": at}
    t = schema.tasks
    if not connection.execute(update(t).where(t.c.name == task.name).values(values)).rowcount:
        connection.execute(insert(t).values(name=task.name, created_at=at, **values))


def set_status(connection: Connection, name: str, version: int, status: str) -> None:
    """Change a version's status in the index; its manifest stays as it was written."""
    connection.execute(update(_v).where(_v.c.name == name, _v.c.version == version).values(status=status))


def delete_version(connection: Connection, name: str, version: int, reason: str) -> None:
    """Mark a version deleted and remove what is recorded about it.

    The row stays, emptied, so that the number is not used again. Aliases that named the version are dropped;
    `latest` moves to the newest version that is still active. The tasks that it served have no serving version.
    """
    mine = (_v.c.name == name) & (_v.c.version == version)
    for table in (schema.serving, schema.evaluations, schema.requests):
        connection.execute(delete(table).where(table.c.name == name, table.c.version == version))
    edges = schema.lineage
    connection.execute(delete(edges).where(edges.c.child_name == name, edges.c.child_version == version))
    connection.execute(update(_v).where(mine).values(status="deleted", manifest="{}", bytes=0, task=""))
    held = connection.scalars(select(_a.c.alias).where(_a.c.name == name, _a.c.version == version)).all()
    for alias in held:
        follower = newest_active(connection, name) if alias == LATEST else None
        if follower is None:
            drop_alias(connection, name, alias, reason)
        else:
            move_alias(connection, name, alias, follower, reason)


def insert_deleted(connection: Connection, name: str, version: int) -> None:
    """Insert the emptied row of a version that no longer exists, so that its number is not used again."""
    at, a = now(), schema.adapters
    if connection.scalar(select(a.c.name).where(a.c.name == name)) is None:
        connection.execute(insert(a).values(name=name, created_at=at))
    values = {"kind": "trained", "task": "", "status": "deleted", "rank": 0, "bytes": 0, "created_at": at}
    connection.execute(insert(_v).values(name=name, version=version, manifest_sha256="", manifest="{}", **values))


def erase_versions(connection: Connection, gone: Mapping[tuple[str, int], tuple[str, int] | None], reason: str) -> None:
    """Delete versions for good: each row is emptied, and aliases move to the version's replacement.

    Args:
        gone: (name, version) → its replacement, or None.
    """
    for (name, version), after in gone.items():
        if connection.scalar(select(_v.c.name).where(_v.c.name == name, _v.c.version == version)) is None:
            insert_deleted(connection, name, version)
        held = connection.scalars(select(_a.c.alias).where(_a.c.name == name, _a.c.version == version)).all()
        for alias in held:
            if after is None or alias == LATEST:
                continue  # dropped below; `latest` moves to the newest that is left
            if after[0] != name:
                drop_alias(connection, name, alias, reason)
            move_alias(connection, after[0], alias, after[1], reason)
        delete_version(connection, name, version, reason)
        connection.execute(
            update(_v).where(_v.c.name == name, _v.c.version == version).values(manifest_sha256="", rank=0)
        )
    for name, version in gone:
        connection.execute(delete(_h).where(_h.c.name == name, _h.c.version == version))


def empty_events(connection: Connection, refs: Iterable[str]) -> None:
    """Remove the details from log entries about these references."""
    e = schema.events
    for ref in refs:
        connection.execute(update(e).where(e.c.ref == ref, e.c.verb != "forget-task").values(detail="{}"))


def delete_task(connection: Connection, task: str) -> None:
    """Remove a task: its description, its serving row, all scores on it and the counters of its requests."""
    for table in (schema.serving, schema.evaluations, schema.requests):
        connection.execute(delete(table).where(table.c.task == task))
    connection.execute(delete(schema.tasks).where(schema.tasks.c.name == task))


def drop_serving(connection: Connection, task: str) -> None:
    connection.execute(delete(schema.serving).where(schema.serving.c.task == task))
