"""Health checks: differences between index and disk, how to fix them, and what can be deleted."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapterhub_cl.errors import AdapterHubError, IntegrityError, StorageError
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import (
    files,
    keys,
    manifests,
    mirror,
    queries,
    run_checks,
    samples,
    score_file,
    shared_checks,
    tombstones,
    unreadable,
    writes,
)
from adapterhub_cl.registry.aliasing import ways_on
from adapterhub_cl.registry.index import REBUILD, Index, Query
from adapterhub_cl.registry.names import is_name
from adapterhub_cl.registry.quoting import quoted
from adapterhub_cl.registry.rebuilding import UNUSABLE, is_version, reason, version_directories
from adapterhub_cl.registry.samples import ROUTERS
from adapterhub_cl.registry.shared_store import SharedStore
from adapterhub_cl.types import AdapterRecord, Problem

REPAIR = "cl-adapter verify --repair"
_DANGLING = """FROM {table} t LEFT JOIN versions v ON v.name = t.name AND v.version = t.version
    WHERE v.name IS NULL OR v.status = 'deleted'"""


@dataclass(frozen=True)
class Garbage:
    """Something that the hub no longer needs. `bytes` is the space that removing it frees.

    Attributes:
        in_store: `path` is one in the shared store.
    """

    path: Path
    reason: str
    bytes: int
    in_store: bool = False


@dataclass(frozen=True)
class Place:
    """A hub's directories, its index and, if its versions are in one, its shared store."""

    hub: Path
    store: Path
    index: Index
    shared: SharedStore | None = None

    @property
    def runs(self) -> Path:
        return self.hub / "runs"

    def relative(self, path: Path) -> str:
        """The path as problems show it: relative to the hub if it is inside."""
        return Path(os.path.relpath(path, self.hub)).as_posix()


def verify(place: Place, reporter: Reporter | None = None) -> list[Problem]:
    """Every problem found; empty for a healthy hub. Reads and hashes every file."""
    found = [*_pending(place), *_tombstones(place), *_leftovers(place), *run_checks.unfinished(place), *_strays(place)]
    try:
        with place.index.reading() as query:
            found += _database(place, query)
            queries.check(query)
            found += _versions(place, query) if place.shared is None else ()
            found += _dangling(query)
            if place.shared is None or place.index.file is not None:  # otherwise other machines write too
                found += _mirror(place, query)
            queries.events(query, None, None)  # raises if a row cannot be read
            queries.evaluations(query, None, None, None)
        found += shared_checks.problems(place, place.shared, reporter or Reporter()) if place.shared is not None else ()
    except IntegrityError as error:
        found.append(Problem("index.db", error.message, REBUILD))
    return found


def repair(place: Place, reporter: Reporter | None = None, *, hashes: bool = True) -> list[str]:
    """Complete what was interrupted, adopt complete versions that have no rows, drop rows that name nothing, remove
    leftovers; returns one line for each.

    Raises:
        StorageError: the disk cannot be written.
    """
    finished = samples.finish(place.hub, place.store, place.index)
    done = [] if finished is None else [finished]
    with place.index.lock(), place.index.reading() as query:
        queries.check(query)
        recorded = unreadable.recorded(query) if place.shared is None else ()
        for path in unreadable.write_back(place.store, recorded, changed=True):
            done.append(f"restored {place.relative(path)} from the index")
    if place.shared is not None:
        done += shared_checks.repair_store(place, place.shared, reporter or Reporter(), hashes)
    with place.index.writing() as connection:
        done += shared_checks.adopt(place, place.shared, connection) if place.shared is not None else ()
        for directory in _unregistered(place, lambda sql: [tuple(r) for r in connection.exec_driver_sql(sql)]):
            if _whole(directory) is None:
                manifest, text = manifests.read(directory)
                try:
                    with connection.begin_nested():
                        writes.insert_version(connection, manifest, text, tombstones.forgotten(place.hub))
                        writes.apply_moves(connection, manifest)
                        writes.publish_event(connection, manifest)
                        unreadable.give_back(connection, manifest)
                except UNUSABLE as error:
                    done.append(f"skipped {place.relative(directory)}: {reason(error)}")
                    continue
                done.append(f"adopted {place.relative(directory)}")
        told = mirror.read(place.hub)[0]
        for ref in unreadable.keep_place(connection, place.store, told) if place.shared is None else ():
            done.append(f"reserved the version number of {ref}, which is missing from the index")
        for table, key in (("aliases", "alias"), ("serving", "task")):
            sql = f"SELECT t.name, t.version, t.{key} " + _DANGLING.format(table=table)
            for name, version, what in connection.exec_driver_sql(sql).all():
                if key == "alias":
                    writes.drop_alias(connection, name, what, "repair")
                else:
                    writes.drop_serving(connection, what)
                done.append(f"dropped the {key} {what}, which named the missing {name}@v{version}")
    for path in _temporary(place):
        files.remove_tree(path)
        done.append(f"removed {place.relative(path)}")
    with place.index.lock(), place.index.reading() as query:
        if score_file.mend(place.hub, query):
            done.append(f"wrote {score_file.FILE_NAME}")
        if mirror.is_stale(place.hub, query):
            if mirror.read(place.hub)[1]:
                done.append(f"renamed the unreadable {mirror.STATE} to {mirror.set_aside(place.hub)}")
            files.atomic_write_text(place.hub / mirror.STATE, mirror.text(query))
            done.append(f"wrote {mirror.STATE}")
    return done


def garbage(place: Place, older_than_days: float) -> list[Garbage]:
    """Leftovers, unfinished runs older than this many days, and directories of deleted versions that no run needs.

    Descendants of a version never need its files: every adapter is self-contained.
    """
    found = [(path, "leftover of a process that has ended") for path in _temporary(place)]
    for path, about in run_checks.run_directories(place.runs):
        if about is None:
            found.append((path, "a run without run.json"))
        elif time.time() - run_checks.touched(path) >= older_than_days * 86_400:
            found.append((path, f"an unfinished run of {about.get('name', '?')}"))
    with place.index.reading() as query:
        deleted = set(query("SELECT name, version FROM versions WHERE status = 'deleted'"))
    needed = run_checks.needed_by_runs(place, dropped={path for path, _ in found})
    for path in version_directories(place.store):
        name, version = path.parent.name, int(path.name[1:])
        if (name, version) in deleted and f"{name}@v{version}" not in needed:
            found.append((path, "a deleted version"))
    garbage = [Garbage(path, reason, files.tree_bytes(path)) for path, reason in found]
    if place.shared is not None:
        there = shared_checks.unneeded(place, place.shared, list(needed))
        garbage += [Garbage(Path(path), why, size, in_store=True) for path, (why, size) in there.items()]
    return garbage


def collect(place: Place, items: Sequence[Garbage]) -> int:
    """Remove what `garbage` found; returns the number of bytes freed.

    Raises:
        StorageError: the disk cannot be written, or a path is not one of the hub's adapters, runs or leftovers.
    """
    freed = sum(item.bytes for item in items if item.in_store)
    if place.shared is not None and (paths := [item.path.as_posix() for item in items if item.in_store]):
        shared_checks.collect(place, place.shared, paths)
    for item in items:
        if item.in_store:
            continue
        if not _removable(place, item.path):
            raise StorageError(f"{item.path} does not belong to this hub; not removed", "pass what garbage() returned")
        files.remove_tree(item.path)
        freed += item.bytes
        with suppress(OSError):
            if item.path.parent.parent == place.store:
                item.path.parent.rmdir()  # succeeds only if empty: the last version of a name is gone
    return freed


def _removable(place: Place, path: Path) -> bool:
    """Whether the path is a leftover, a run or a version of this hub, judged by its location."""
    parent, temporary = path.parent.resolve(), path.name.startswith(files.TEMPORARY)
    hub, runs, store = (p.resolve() for p in (place.hub, place.runs, place.store))
    in_adapter = parent.parent == store and is_name(parent.name) and is_version(path.name)
    in_runs = parent == runs and path.name not in ("", ".", "..")
    in_routers = hub / ROUTERS in (parent, parent.parent)
    return in_adapter or in_runs or (temporary and (parent in (hub, store) or parent.parent == store or in_routers))


# -- what verify looks at ------------------------------------------------------------------------------------


def _temporary(place: Place) -> list[Path]:
    folders = [place.hub, place.runs, place.store]
    folders += [p for p in place.store.iterdir() if p.is_dir() and not p.is_symlink()] if place.store.is_dir() else []
    routers = place.hub / ROUTERS
    if routers.is_dir() and not routers.is_symlink():
        folders += [routers, *(p for p in routers.iterdir() if p.is_dir() and not p.is_symlink())]
    return [p for folder in folders for p in sorted(folder.glob(f"{files.TEMPORARY}*")) if files.is_leftover(p)]


def _pending(place: Place) -> Iterator[Problem]:
    if samples.is_pending(place.hub):
        yield Problem(samples.INTENT, "a removal of replay samples was interrupted", REPAIR)


def _tombstones(place: Place) -> Iterator[Problem]:
    for path, row in tombstones.read_all(place.hub):
        if row["state"] != tombstones.DONE:
            task = row["task"]
            said = f"forget-task {task} was interrupted: parts of the task are still there"
            fix = f"cl-adapter forget-task {task} --yes"
            if row.get("key") and keys.usual(place.hub, row["key"]) is None:  # the user chose where its file is
                fix += " --key FILE, with the key file it was started with"
            yield Problem(place.relative(path), said, fix)
        elif tombstones.is_weak(row):
            said = "its hashes are weak: they use no secret key, so short removed texts can be found by guessing"
            yield Problem(place.relative(path), said, REPAIR)
    for path in tombstones.broken(place.hub):
        yield Problem(place.relative(path), "not a valid tombstone", "restore it from a copy of the hub")


def _leftovers(place: Place) -> Iterator[Problem]:
    for path in _temporary(place):
        yield Problem(place.relative(path), "leftover of a process that has ended", REPAIR)


def _strays(place: Place) -> Iterator[Problem]:
    """Whatever is in the store and is neither an adapter nor a version."""
    fix = "move it elsewhere: the store may contain adapters only"
    for adapter in sorted(place.store.iterdir()) if place.store.is_dir() else ():
        if adapter.name.startswith(files.TEMPORARY):
            continue
        if adapter.is_symlink() or not adapter.is_dir() or not is_name(adapter.name):
            yield Problem(place.relative(adapter), "not an adapter's directory", fix)
            continue
        for path in sorted(adapter.iterdir()):
            if path.name.startswith(files.TEMPORARY):
                continue
            if path.is_symlink() or not path.is_dir() or not is_version(path.name):
                yield Problem(place.relative(path), "not a version's directory", fix)


def _database(place: Place, query: Query) -> Iterator[Problem]:
    if place.index.file is None:
        return
    said = [str(row[0]) for row in query("PRAGMA integrity_check")]
    if said != ["ok"]:
        yield Problem(place.relative(place.index.file), f"damaged: {said[0]}", REBUILD)


def _versions(place: Place, query: Query) -> Iterator[Problem]:
    for record in queries.adapters(query, place.store, all_versions=True, include_rejected=True):
        yield from _version(place, query, record)
    for directory in _unregistered(place, query):
        wrong = _whole(directory)
        if wrong is None:
            yield Problem(place.relative(directory), "not in the index: publishing was interrupted", REPAIR)
        else:
            fix = "restore it from a copy of the hub, or remove the directory"
            yield Problem(place.relative(directory), f"not in the index, and incomplete: {wrong}", fix)


def _version(place: Place, query: Query, record: AdapterRecord) -> Iterator[Problem]:
    """What is wrong with the directory of a version that is in the index."""
    sql = "SELECT manifest_sha256, manifest FROM versions WHERE name = :name AND version = :version"
    ((digest, text),) = query(sql, name=record.name, version=record.version)
    directory, where = record.path, place.relative(record.path)
    manifest = directory / manifests.FILE_NAME

    def restore(*, manifest_too: bool = False) -> str:
        if manifest_too and unreadable.in_index(directory, digest, text):
            return REPAIR
        return ", or ".join(["restore it from a copy of the hub", *ways_on(query, place.store, record)])

    if directory.is_symlink() or not directory.is_dir():
        yield Problem(where, f"missing, but {record.ref} is in the index", f"{restore()}, or {REBUILD}")
        return
    if manifest.is_symlink() or not manifest.is_file():
        yield Problem(f"{where}/{manifests.FILE_NAME}", "missing", restore(manifest_too=True))
    elif hashlib.sha256(manifest.read_bytes()).hexdigest() != digest:
        said = "changed: it differs from the recorded manifest"
        yield Problem(f"{where}/{manifests.FILE_NAME}", said, restore(manifest_too=True))
    for relative, what in manifests.differences(directory, record.manifest["files"]):
        fix = f"delete it: rm {quoted(f'{where}/{relative}')}" if what.startswith("extra") else restore()
        yield Problem(f"{where}/{relative}", what, fix)


def _unregistered(place: Place, query: Query) -> list[Path]:
    if place.shared is not None:
        return []  # a copy without rows is worth nothing
    rows_there = set(query("SELECT name, version FROM versions"))
    return [p for p in version_directories(place.store) if (p.parent.name, int(p.name[1:])) not in rows_there]


def _whole(directory: Path) -> str | None:
    """What is wrong with a version directory on its own; None if it is complete."""
    try:
        manifest, _ = manifests.read(directory)
    except AdapterHubError as error:
        return error.message
    return next((f"{relative} {what}" for relative, what in manifests.differences(directory, manifest["files"])), None)


def _dangling(query: Query) -> Iterator[Problem]:
    for table, key in (("aliases", "alias"), ("serving", "task")):
        for name, version, what in query(f"SELECT t.name, t.version, t.{key} " + _DANGLING.format(table=table)):
            yield Problem("index.db", f"the {key} {what} names {name}@v{version}, which does not exist", REPAIR)


def _mirror(place: Place, query: Query) -> Iterator[Problem]:
    if mirror.is_stale(place.hub, query):
        said = mirror.read(place.hub)[1] or "it differs from the index"
        yield Problem(mirror.STATE, f"{said}, so rebuilding the index would lose aliases", REPAIR)
    if count := score_file.lacks(place.hub, query):
        said = f"{count} recorded scores are missing, so rebuilding the index would lose them"
        yield Problem(score_file.FILE_NAME, said, REPAIR)
    for path in sorted(place.hub.glob(f"{mirror.BROKEN}*")):
        said = f"an earlier {mirror.STATE} that could not be read"
        yield Problem(path.name, said, f"check its content, then remove it: rm -r {quoted(path.name)}")
