"""Rebuilds the index from the manifests, `aliases.json` and `evaluations.jsonl`."""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import DataError, InterfaceError, ProgrammingError
from sqlalchemy.exc import IntegrityError as Violation

from adapterhub_cl.errors import AdapterHubError, IntegrityError, StorageError
from adapterhub_cl.registry import (
    changes,
    files,
    manifests,
    mirror,
    queries,
    schema,
    score_file,
    tombstones,
    unreadable,
    usage,
    writes,
)
from adapterhub_cl.registry.index import Index, Query, Row, index_errors, open_sqlite
from adapterhub_cl.registry.names import is_name, parse_ref
from adapterhub_cl.registry.shared_store import SharedStore

LOG = logging.getLogger("adapterhub_cl")
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class _Old:
    """What exists only in the old index: the log, and the request counters."""

    events: Sequence[Row] = ()
    requests: Sequence[Row] = ()


def version_directories(store: Path) -> Iterator[Path]:
    """All `<name>/v<N>` directories of a store; links and anything else are skipped."""
    for adapter in sorted(store.iterdir()) if store.is_dir() else ():
        if is_name(adapter.name) and adapter.is_dir() and not adapter.is_symlink():
            for path in sorted(adapter.iterdir()):
                if is_version(path.name) and path.is_dir() and not path.is_symlink():
                    yield path


def is_version(text: str) -> bool:
    """Whether a directory name is `v<N>`."""
    return text[:1] == "v" and text[1:].isascii() and text[1:].isdigit() and text[1] != "0" and len(text) < 11


def rebuild(
    hub: Path, index: Index, store: Path, *, only_if_blank: bool = False, shared: SharedStore | None = None
) -> int:
    """Rebuild the index under the hub's lock, and put it in place of the old one.

    Works whatever state the old index is in, even missing. A version whose manifest is invalid is skipped, with a
    warning in the log; `verify` then reports it.

    Args:
        hub: the hub's directory.
        index: its index, in any state.
        store: the directory of its adapters.
        shared: where the manifests are, if not in that directory.
        only_if_blank: do nothing if another process has created an index in the meantime.

    Returns:
        The number of versions in the new index.

    Raises:
        StorageError: the disk cannot be written; the old index is untouched.
    """
    try:
        return _rebuild(hub, index, store, only_if_blank, shared)
    except StorageError as error:
        if only_if_blank and getattr(error.__cause__, "errno", None) in _READ_ONLY:
            raise StorageError(
                f"{hub} has no index yet and is read-only, so an index cannot be created: {error.message}",
                f"make a writable copy and create it there: cp -r {hub} COPY; cl-adapter --hub COPY list",
            ) from error
        raise


def _rebuild(hub: Path, index: Index, store: Path, only_if_blank: bool, shared: SharedStore | None) -> int:
    with changes.operation(), index.lock():
        if only_if_blank and index.revision() is not None:
            return 0
        if index.file is None:
            index.migrate()
            _follow_server(hub, index)
            if shared is None:
                _write_back(index, store)
            with index.writing() as connection:

                def query(sql: str) -> list[Row]:
                    return [tuple(row) for row in connection.exec_driver_sql(sql)]

                old = _Old(_log(query), usage.read(query))
                for table in reversed(schema.metadata.sorted_tables):
                    connection.execute(delete(table))
                count = _fill(connection, hub, store, old, shared)
        else:
            index.check_file()
            _remove_leftovers(hub)
            _settle(hub, index)
            if shared is None:
                _write_back(index, store)
            count = _rebuild_sqlite(hub, index.file, store, shared)
        mirror.tell_broken(hub)
        return count


def _write_back(index: Index, store: Path) -> None:
    """Restore unreadable manifests from the old index, as far as that can be read."""
    recorded: Sequence[Row] = ()
    with suppress(AdapterHubError), index.reading() as query:
        recorded = unreadable.recorded(query)
    for path in unreadable.write_back(store, recorded):
        LOG.warning("restored the damaged %s from the index", path)


def _follow_server(hub: Path, index: Index) -> None:
    """Bring the files that the rows are made from up to date with a server, where other machines may have written."""
    with suppress(AdapterHubError), index.reading() as query:
        if query("SELECT 1 FROM versions LIMIT 1"):
            mirror.settle(hub, query)


def _remove_leftovers(hub: Path) -> None:
    """Remove what a killed rebuild has left behind."""
    for path in hub.glob(f"{files.TEMPORARY}*"):
        if files.is_leftover(path):
            files.remove_tree(path)


def _settle(hub: Path, index: Index) -> None:
    """Bring the files that the new index is made from up to date with the old one, as far as it can be read, and
    checkpoint its write-ahead log, which is deleted with it."""
    with suppress(AdapterHubError), index.reading() as query:
        if mirror.is_unsettled(hub):
            mirror.settle(hub, query)
    if index.file is not None:
        with suppress(sqlite3.Error), closing(open_sqlite(index.file)) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _rebuild_sqlite(hub: Path, file: Path, store: Path, shared: SharedStore | None) -> int:
    temporary = hub / files.temporary_name()
    with files.storage_errors(hub):
        temporary.mkdir()
    try:
        fresh = Index(temporary, "sqlite:///index.db")
        fresh.migrate()
        with fresh.writing() as connection:
            count = _fill(connection, hub, store, _old_of_file(file), shared)
        new = temporary / "index.db"
        with index_errors(str(new)), closing(open_sqlite(new)) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with files.storage_errors(file):
            files.fsync_file(new)
            # The old write-ahead log must go first: SQLite would replay it into the new database.
            for suffix in ("-wal", "-shm"):
                file.with_name(file.name + suffix).unlink(missing_ok=True)
            new.replace(file)
            changes.happened()
            files.fsync_dir(file.parent)
    finally:
        files.remove_tree(temporary)
    return count


def _fill(connection: Connection, hub: Path, store: Path, old: _Old, shared: SharedStore | None = None) -> int:
    """Insert everything; a version that is missing from the old log gets a log entry made from its manifest.

    What tombstones name stays forgotten: scores on the task, and versions that a copy of the hub has brought back.
    """
    found: list[tuple[dict[str, Any], str]] = []
    forgotten, gone = tombstones.forgotten(hub), tombstones.removed(hub)
    if shared is None:
        directories = list(version_directories(store))
    else:
        directories = [store / name / f"v{number}" for name, number in sorted(shared.versions())]
    for directory in directories:
        name, number = directory.parent.name, int(directory.name[1:])
        if f"{name}@v{number}" in gone:
            LOG.warning("skipped %s: it belongs to a forgotten task", directory)
            continue
        try:
            found.append(manifests.read(directory) if shared is None else shared.parsed(name, number))
        except IntegrityError as error:
            LOG.warning("skipped a version: %s", error.message)
    found.sort(key=lambda item: (item[0]["created_at"], item[0]["name"], item[0]["version"]))
    logged = {ref for _, _, ref, _ in old.events}
    if old.events:
        keys = ("at", "verb", "ref", "detail")
        connection.execute(insert(schema.events), [dict(zip(keys, row, strict=True)) for row in old.events])
    indexed = []
    for manifest, text in found:
        try:
            with connection.begin_nested():
                writes.insert_version(connection, manifest, text, forgotten)
            indexed.append(manifest)
        except UNUSABLE as error:
            LOG.warning("skipped %s@v%s: %s", manifest["name"], manifest["version"], reason(error))
    known = mirror.restore(connection, hub)
    score_file.restore(connection, hub, forgotten)
    v = schema.versions.c
    there = {f"{row[0]}@v{row[1]}" for row in connection.execute(select(v.name, v.version))}
    for ref in sorted(gone - there):
        writes.insert_deleted(connection, parse_ref(ref).name, parse_ref(ref).version or 0)
    for manifest in indexed:
        if manifest["version"] > known.get(manifest["name"], 0):
            writes.apply_moves(connection, manifest, replay=True)
        if f"{manifest['name']}@v{manifest['version']}" not in logged:
            writes.publish_event(connection, manifest)
        unreadable.give_back(connection, manifest)
    told = mirror.read(hub, mirror.NEXT_STATE)[0] or mirror.read(hub)[0]
    unreadable.keep_place(connection, store, told)
    usage.add(connection, old.requests)
    return len(indexed)


# Errors that a well-formed manifest can still cause in the functions that write its rows; a full disk is not one.
UNUSABLE = (
    *(TypeError, KeyError, ValueError, AttributeError, ArithmeticError, RecursionError),
    *(DataError, InterfaceError, ProgrammingError, Violation),
)


def reason(error: BaseException) -> str:
    """Why a manifest's rows cannot be written, for a message."""
    return f"its manifest contains values that the index cannot store ({str(error).partition(chr(10))[0][:120]!r})"


def _log(query: Query) -> list[Row]:
    """The entries of the log; a damaged detail does not lose the rest of its entry."""
    return [(*row[:3], _whole(row[3])) for row in query("SELECT at, verb, ref, detail FROM events ORDER BY id")]


def _whole(detail: str) -> str:
    try:
        queries.parsed(detail, "")
    except IntegrityError:
        return "{}"
    return detail


def _old_of_file(file: Path) -> _Old:
    """What the old index contains, as far as it can still be read."""
    log: list[Row] = []
    counters: list[Row] = []
    with suppress(sqlite3.Error), closing(open_sqlite(file)) as connection:

        def query(sql: str) -> list[Row]:
            return connection.execute(sql).fetchall()

        log = _log(query)
        counters = usage.read(query)
    return _Old(log, counters)
