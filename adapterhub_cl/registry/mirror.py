"""Files that keep, outside the index, what the manifests cannot: so that a rebuilt index loses nothing that matters.

`aliases.json` is the movable state (aliases and their history, serving table, statuses, tasks), and
`evaluations.jsonl` has the scores that were recorded after publication, one a line. Both are derived from the index.

What a transaction makes of them is written beside them before it is committed (`….next`), and put in their place
after that. Where a `….next` was left behind, `settle` makes both say again what the index says; `Registry.open` calls
it. So a disk that is full refuses before anything is changed, and a kill at any point heals.
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
    """The highest version of each adapter that there ever was, as far as the index can tell."""
    found: dict[str, int] = dict(query("SELECT name, MAX(version) FROM versions GROUP BY name"))
    for (ref,) in query(f"SELECT DISTINCT ref FROM events WHERE verb = '{writes.UNREADABLE}'"):
        if (kept := shapes.version_of(ref)) is not None:
            found[kept[0]] = max(kept[1], found.get(kept[0], 0))
    return dict(sorted(found.items()))


def text(query: Query) -> str:
    """The content that `aliases.json` should have now, an entry a line: `indent` would write it in pure Python."""
    return "{\n" + ",\n".join(f"{_encode(key)}: {_lines(value)}" for key, value in state(query).items()) + "\n}\n"


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _lines(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "{\n " + ",\n ".join(f"{_encode(key)}: {_encode(entry)}" for key, entry in value.items()) + "\n}"
    if isinstance(value, list) and value:
        return "[\n " + ",\n ".join(map(_encode, value)) + "\n]"
    return _encode(value)


def write(hub: Path, query: Query) -> None:
    """Rewrite `aliases.json`. The index is already committed, so a refusal of the disk is only logged."""
    with logged(STATE):
        if (hub / STATE).is_dir():
            set_aside(hub)
        files.atomic_write_text(hub / STATE, text(query))
        (hub / NEXT_STATE).unlink(missing_ok=True)


@contextmanager
def following(hub: Path, index: Index) -> Iterator[Connection]:
    """One write transaction, and `aliases.json` after it: what it will say is on the disk before the commit.

    Raises:
        StorageError: the disk refused, before or at the commit; `aliases.json` is as it was.
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
    """Whether a change of the index was interrupted before these files followed, or is just going on."""
    return (hub / NEXT_STATE).exists() or (hub / score_file.NEXT).exists()


def is_committed(hub: Path, query: Query) -> bool:
    """Whether the change that was interrupted is in the index: what `aliases.json` was to say next is what it says."""
    return not is_stale(hub, query, NEXT_STATE)


def settle(hub: Path, query: Query) -> None:
    """Make both files say what the index says, after a change of it that was interrupted; under the hub's lock.

    Raises:
        StorageError: the disk refused.
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
    """Whether `aliases.json` is not what the index says."""
    try:
        return bool(json.loads((hub / name).read_text(encoding="utf-8")) != json.loads(text(query)))
    except (OSError, ValueError, RecursionError):  # what is no UTF-8 and what is no JSON are ValueErrors
        return True


def read(hub: Path, name: str = STATE) -> tuple[dict[str, Any], str]:
    """What `aliases.json` says, and what is wrong with it as a whole; nothing of both where it is missing."""
    try:
        found = shapes.parse((hub / name).read_text(encoding="utf-8"), halves=True)
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"it cannot be read ({(error.strerror or 'for no known reason').lower()})"
    except UnicodeDecodeError:
        return {}, "it is not text in UTF-8"
    except ValueError:
        return {}, "it is not valid JSON"
    if not isinstance(found, dict):
        return {}, "it is not an object"
    if not shapes.is_count(found.get("format", FORMAT), FORMAT):
        return {}, f"its format {shown(found['format'])} is not one that this version knows"
    return found, ""


def set_aside(hub: Path) -> str:
    """Rename an `aliases.json` of which nothing can be read, so that it is not written over; the name it has now.

    Raises:
        StorageError: the disk refused.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    names = (f"{BROKEN}{stamp}{f'-{number}' if number else ''}" for number in range(1000))
    name = next(name for name in names if not (hub / name).exists())
    with files.storage_errors(hub / STATE):
        (hub / STATE).rename(hub / name)
    return name


def tell_broken(hub: Path) -> None:
    """After a rebuild: put an `aliases.json` aside of which nothing could be read, and say so in the log."""
    _, wrong = read(hub)
    if wrong:
        try:
            kept = f"kept as {set_aside(hub)}"
        except (StorageError, OSError) as error:
            kept = f"and could not be kept ({error})"
        left = "aliases, statuses and what serves are as when the versions were made"
        _LOG.warning("left out of the index: all of %s: %s; %s; %s", STATE, wrong, left, kept)


def restore(connection: Connection, hub: Path) -> Mapping[str, int]:
    """Bring the movable state back into a fresh index that has the manifests' rows.

    Whatever names a version that is no longer there is left out; `latest` and the serving table then take the
    newest active version of the same adapter. An entry that cannot be read is left out too, with a warning; a task
    is then served by the newest active version that was made for it.

    Returns:
        The highest version of each adapter that the state knew of; newer ones still have to be moved to.
    """
    found = read(hub, NEXT_STATE)[0] or read(hub)[0]  # the first where a change was interrupted, and the index lost
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
    """The entries of a part of the state; none, and a warning, where it is not an object."""
    part = found.get(key)
    if isinstance(part, dict):
        yield from part.items()
    else:
        warn(f"all of {key} ({f'{shown(part)} is not an object' if key in found else 'it is missing'})")


def _known(found: Mapping[str, Any], there: Collection[tuple[str, int]], warn: Warnings) -> dict[str, int]:
    """The highest version of each adapter that the state knew of. Where that cannot be read it is taken to have known
    all of them: else the aliases that it tells of would be moved on at once."""
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
    """Give versions the status that the state tells of, `active` where it tells of none; the deleted ones.

    One that it tells of in words that are no status keeps its manifest's.
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
    lost: set[str] = set()  # adapters whose `latest` cannot be told
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
    lost: set[str] = set()  # tasks of which it cannot be told what serves them
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
    """Whether it is a row of the aliases' history."""
    if not isinstance(row, list) or len(row) != 5:
        return False
    name, alias, version, moved_at, reason = row
    known = version is None or shapes.is_count(version, shapes.LAST_VERSION, least=1)
    named = shapes.is_a_name(name) and shapes.is_an_alias(alias)
    return known and named and shapes.is_text(moved_at) and shapes.is_text(reason)
