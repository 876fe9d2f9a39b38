"""Files beside the index that hold what the manifests cannot, so that rebuilding the index loses nothing important.

`aliases.json` is the movable state (aliases and their history, serving table, statuses, tasks), and
`evaluations.jsonl` has the scores that were recorded after publishing, one a line. Both are derived from the index.

Before a transaction is committed, the new content of both files is written beside them (`….next`); after the commit it
is renamed into place. If a `….next` was left behind, `settle` makes both files match the index again; `Registry.open`
calls it. So a full disk fails before anything is changed, and a kill at any point is repaired.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy import text as as_text

from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry import drafts, files, queries, schema, score_file, shapes, writes
from adapterhub_cl.registry.index import Index, Query
from adapterhub_cl.registry.shapes import shown
from adapterhub_cl.registry.telling import Warnings, logged
from adapterhub_cl.types import LATEST, STATUSES, Task

STATE = "aliases.json"
NEXT_STATE = f"{STATE}.next"
BROKEN = f"{STATE}.broken-"
FORMAT = 1
_TASKS = "SELECT name, spec FROM tasks ORDER BY name"
_LOG = logging.getLogger("adapterhub_cl")


def state(query: Query) -> dict[str, Any]:
    """The movable state of the index, as it is written to `aliases.json`."""
    queries.check(query, "versions", "alias_history")
    history = query("SELECT name, alias, version, moved_at, reason FROM alias_history ORDER BY id")
    statuses = query("SELECT name, version, status FROM versions WHERE status <> 'active' ORDER BY name, version")
    return {
        "format": FORMAT,
        "aliases": queries.aliases(query),
        "serving": queries.serving(query),
        "statuses": {f"{name}@v{version}": status for name, version, status in statuses},
        "tasks": {name: queries.parsed(spec, f"the task {name}") for name, spec in query(_TASKS)},
        "known": _highest(query),
        "history": [list(row) for row in history],
    }


def _highest(query: Query) -> dict[str, int]:
    """The highest version that each adapter ever had, as far as the index knows."""
    found: dict[str, int] = dict(query("SELECT name, MAX(version) FROM versions GROUP BY name"))
    for (ref,) in query(f"SELECT DISTINCT ref FROM events WHERE verb = '{writes.UNREADABLE}'"):
        if (kept := shapes.version_of(ref)) is not None:
            found[kept[0]] = max(kept[1], found.get(kept[0], 0))
    return dict(sorted(found.items()))


def text(query: Query) -> str:
    """The content that `aliases.json` should have now, an entry a line (json's `indent` runs in slow pure Python)."""
    return "{\n" + ",\n".join(f"{_encode(key)}: {_lines(value)}" for key, value in state(query).items()) + "\n}\n"


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _lines(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "{\n " + ",\n ".join(f"{_encode(key)}: {_encode(entry)}" for key, entry in value.items()) + "\n}"
    if isinstance(value, list) and value:
        return "[\n " + ",\n ".join(map(_encode, value)) + "\n]"
    return _encode(value)


def write(hub: Path, query: Query) -> None:
    """Rewrite `aliases.json`. The index is already committed, so a disk error is only logged."""
    with logged(STATE):
        if (hub / STATE).is_dir():
            set_aside(hub)
        files.atomic_write_text(hub / STATE, text(query))
        (hub / NEXT_STATE).unlink(missing_ok=True)


@contextmanager
def following(hub: Path, index: Index) -> Iterator[Connection]:
    """One write transaction, then `aliases.json`: its new content is on disk before the commit.

    Raises:
        StorageError: the disk cannot be written, before or at the commit; `aliases.json` is unchanged.
    """
    following = hub / NEXT_STATE
    with index.lock():
        try:
            with index.writing() as connection:
                yield connection
                with files.storage_errors(following):
                    files.write_synced(following, text(_query_of(connection)).encode())
                    files.fsync_dir(hub)
        except BaseException:
            with suppress(OSError):
                following.unlink(missing_ok=True)
            raise
        drafts.fault("committed")
        with logged(STATE):
            if (hub / STATE).is_dir():
                set_aside(hub)
            following.replace(hub / STATE)
            files.fsync_dir(hub)


def _query_of(connection: Connection) -> Query:
    return lambda sql, **values: [tuple(row) for row in connection.execute(as_text(sql), values)]


def is_unsettled(hub: Path) -> bool:
    """Whether a change of the index was interrupted before these files were updated, or is in progress."""
    return (hub / NEXT_STATE).exists() or (hub / score_file.NEXT).exists()


def is_committed(hub: Path, query: Query) -> bool:
    """Whether the interrupted change is in the index: the pending `aliases.json` matches it."""
    return not is_stale(hub, query, NEXT_STATE)


def settle(hub: Path, query: Query) -> None:
    """Make both files match the index after an interrupted change; needs the hub's lock.

    Raises:
        StorageError: the disk cannot be written.
    """
    if is_stale(hub, query):
        if read(hub)[1]:
            set_aside(hub)
        files.atomic_write_text(hub / STATE, text(query))
    score_file.mend(hub, query)
    for name in (NEXT_STATE, score_file.NEXT):
        with files.storage_errors(hub / name):
            (hub / name).unlink(missing_ok=True)


def is_stale(hub: Path, query: Query, name: str = STATE) -> bool:
    """Whether `aliases.json` differs from the index."""
    try:
        return bool(json.loads((hub / name).read_text(encoding="utf-8")) != json.loads(text(query)))
    except (OSError, ValueError, RecursionError):  # invalid UTF-8 and invalid JSON are both ValueErrors
        return True


def read(hub: Path, name: str = STATE) -> tuple[dict[str, Any], str]:
    """The content of `aliases.json`, and what is wrong with the file as a whole; both empty if it is missing."""
    try:
        found = shapes.parse((hub / name).read_text(encoding="utf-8"), halves=True)
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"it cannot be read ({(error.strerror or 'unknown reason').lower()})"
    except UnicodeDecodeError:
        return {}, "it is not UTF-8 text"
    except ValueError:
        return {}, "it is not valid JSON"
    if not isinstance(found, dict):
        return {}, "it is not an object"
    if not shapes.is_count(found.get("format", FORMAT), FORMAT):
        return {}, f"its format {shown(found['format'])} is not supported by this version"
    return found, ""


def set_aside(hub: Path) -> str:
    """Rename an unreadable `aliases.json`, so that it is not overwritten; returns its new name.

    Raises:
        StorageError: the disk cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    names = (f"{BROKEN}{stamp}{f'-{number}' if number else ''}" for number in range(1000))
    name = next(name for name in names if not (hub / name).exists())
    with files.storage_errors(hub / STATE):
        (hub / STATE).rename(hub / name)
    return name


def tell_broken(hub: Path) -> None:
    """After a rebuild: rename an unreadable `aliases.json`, and log that."""
    _, wrong = read(hub)
    if wrong:
        try:
            kept = f"the file was renamed to {set_aside(hub)}"
        except (StorageError, OSError) as error:
            kept = f"the file could not be renamed ({error})"
        left = "aliases, statuses and the serving table are as when the versions were made"
        _LOG.warning("skipped all of %s: %s; %s; %s", STATE, wrong, left, kept)


def restore(connection: Connection, hub: Path) -> Mapping[str, int]:
    """Restore the movable state in a fresh index that has the manifests' rows.

    Entries that name a version that no longer exists are dropped; `latest` and the serving table then use the newest
    active version of the same adapter. An unreadable entry is dropped too, with a warning; its task is then served by
    the newest active version that was made for it.

    Returns:
        The highest version of each adapter that the state contained; newer ones still have to be moved to.
    """
    found = read(hub, NEXT_STATE)[0] or read(hub)[0]  # `.next` exists if a change was interrupted and the index lost
    if not found:
        return {}
    warn = Warnings(STATE)
    v = schema.versions
    there: dict[tuple[str, int], str] = {
        (row[0], row[1]): row[2] for row in connection.execute(select(v.c.name, v.c.version, v.c.status))
    }
    known = _known(found, there, warn)
    deleted = _restore_statuses(connection, found, there, known, warn)
    live = there.keys() - deleted
    _restore_aliases(connection, found, live, warn)
    _restore_history(connection, found, warn)
    for name, spec in _entries(found, "tasks", warn):
        if wrong := shapes.wrong_task(spec, name):
            warn(f"the task {shown(name)} ({wrong})")
        else:
            writes.put_task(connection, Task.from_json(spec))
    _restore_serving(connection, found, live, warn)
    warn.end()
    return known


def _entries(found: Mapping[str, Any], key: str, warn: Warnings) -> Iterator[tuple[str, Any]]:
    """The entries of one part of the state; none, and a warning, if it is not an object."""
    part = found.get(key)
    if isinstance(part, dict):
        yield from part.items()
    else:
        warn(f"all of {key} ({f'{shown(part)} is not an object' if key in found else 'it is missing'})")


def _known(found: Mapping[str, Any], there: Collection[tuple[str, int]], warn: Warnings) -> dict[str, int]:
    """The highest version of each adapter that the state contained. If that is unreadable, assume it contained all of
    them: otherwise its aliases would be moved on at once."""
    known: dict[str, int] = {}
    unsure = {name for name, _ in there} if not isinstance(found.get("known"), dict) else set[str]()
    for name, version in _entries(found, "known", warn):
        if shapes.is_a_name(name) and shapes.is_count(version, shapes.LAST_VERSION):
            known[name] = version
        else:
            warn(f"the highest version of {shown(name)}: {shown(version)}")
            unsure.add(name)
    newest: dict[str, int] = {}
    for name, version in there:
        newest[name] = max(version, newest.get(name, 0))
    return known | {name: newest[name] for name in unsure & newest.keys()}


def _restore_statuses(
    connection: Connection,
    found: Mapping[str, Any],
    there: Mapping[tuple[str, int], str],
    known: Mapping[str, int],
    warn: Warnings,
) -> set[tuple[str, int]]:
    """Set versions to the status in the state, `active` if it has none for them; returns the deleted ones.

    A version whose status is not a known word keeps the one in its manifest.
    """
    statuses: dict[tuple[str, int], str] = {}
    unsure: set[tuple[str, int]] = set()
    for text_ref, status in _entries(found, "statuses", warn):
        ref = shapes.version_of(text_ref)
        if ref is not None and isinstance(status, str) and status in STATUSES:
            statuses[ref] = status
        else:
            warn(f"the status of {shown(text_ref)}: {shown(status)}")
            unsure |= {ref} if ref is not None else set()
    untold = not isinstance(found.get("statuses"), dict)
    for (name, version), status in there.items():
        wanted = status if untold or (name, version) in unsure else statuses.get((name, version), "active")
        if version <= known.get(name, 0) and wanted != status:
            if wanted == "deleted":
                writes.delete_version(connection, name, version, "rebuild")
            else:
                writes.set_status(connection, name, version, wanted)
    deleted = {ref for ref, status in statuses.items() if status == "deleted"}
    for name, version in sorted(deleted - there.keys()):
        writes.insert_deleted(connection, name, version)
    return deleted


def _restore_aliases(
    connection: Connection, found: Mapping[str, Any], live: Collection[tuple[str, int]], warn: Warnings
) -> None:
    lost: set[str] = set()  # adapters whose `latest` is unreadable
    if not isinstance(found.get("aliases"), dict):
        lost = {name for name, _ in live}
    for name, held in _entries(found, "aliases", warn):
        if not shapes.is_a_name(name) or not isinstance(held, dict):
            warn(f"the aliases of {shown(name)}: {shown(held)}")
            lost.add(name)
            continue
        values = []
        for alias, version in held.items():
            if not shapes.is_an_alias(alias) or not shapes.is_count(version, shapes.LAST_VERSION, least=1):
                warn(f"the alias {shown(alias)} of {name}: {shown(version)}")
            elif (name, version) in live:
                values.append({"name": name, "alias": alias, "version": version})
        if values:
            connection.execute(insert(schema.aliases), values)
        if LATEST in held and LATEST not in {value["alias"] for value in values}:
            lost.add(name)
    for name in sorted(lost & {name for name, _ in live}):
        newest = writes.newest_active(connection, name)
        if newest is not None:
            writes.move_alias(connection, name, LATEST, newest, "rebuild")


def _restore_history(connection: Connection, found: Mapping[str, Any], warn: Warnings) -> None:
    columns = ("name", "alias", "version", "moved_at", "reason")
    history, told = [], found.get("history", [])
    if not isinstance(told, list):
        warn(f"all of history ({shown(told)} is not a list)")
        return
    for number, row in enumerate(told, 1):
        if _is_move(row):
            history.append(dict(zip(columns, row, strict=True)))
        else:
            warn(f"move {number} of history: {shown(row)}")
    if history:
        connection.execute(insert(schema.alias_history), history)


def _restore_serving(
    connection: Connection, found: Mapping[str, Any], live: Collection[tuple[str, int]], warn: Warnings
) -> None:
    v = schema.versions.c
    lost: set[str] = set()  # tasks whose serving version is unreadable
    if not isinstance(found.get("serving"), dict):
        lost = {str(task) for task in connection.scalars(select(v.task).where(v.task != ""))}
    for task, text_ref in _entries(found, "serving", warn):
        ref = shapes.version_of(text_ref)
        if not shapes.is_a_name(task) or ref is None:
            warn(f"what serves {shown(task)}: {shown(text_ref)}")
            lost.add(task)
            continue
        answers = ref[1] if ref in live else writes.newest_active(connection, ref[0])
        if answers is not None:
            writes.set_serving(connection, task, ref[0], answers)
    for task in sorted(lost):
        own = select(v.name, v.version).where(v.task == task, v.status == "active")
        newest = connection.execute(own.order_by(v.created_at.desc(), v.version.desc())).first()
        if newest is not None:
            writes.set_serving(connection, task, newest[0], newest[1])


def _is_move(row: Any) -> bool:
    """Whether it is a valid row of the aliases' history."""
    if not isinstance(row, list) or len(row) != 5:
        return False
    name, alias, version, moved_at, reason = row
    known = version is None or shapes.is_count(version, shapes.LAST_VERSION, least=1)
    named = shapes.is_a_name(name) and shapes.is_an_alias(alias)
    return known and named and shapes.is_text(moved_at) and shapes.is_text(reason)
