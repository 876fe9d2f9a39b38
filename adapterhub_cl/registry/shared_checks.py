"""Health checks of a shared store and of this machine's copies; each looks under the hub's lock, so that a version
that is being published elsewhere is not taken for a broken one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from adapterhub_cl.errors import IntegrityError, StorageError
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import files, manifests, tombstones, writes
from adapterhub_cl.registry.index import Query
from adapterhub_cl.registry.rebuilding import UNUSABLE, reason, version_directories
from adapterhub_cl.registry.shared_store import (
    BLOBS,
    LIVE_MANIFESTS,
    SharedStore,
    blob_of,
    is_whole,
    manifest_at,
    needed_files,
)
from adapterhub_cl.registry.store_identity import IDENTITY
from adapterhub_cl.types import Problem

if TYPE_CHECKING:
    from adapterhub_cl.registry.checks import Place

REPAIR = "cl-adapter verify --repair"
ELSEWHERE = f"{REPAIR}, on a machine that has a copy; or restore it from a backup of the store"
Version = tuple[str, int]


def problems(place: Place, shared: SharedStore, reporter: Reporter) -> list[Problem]:
    """What is wrong in the store or in this machine's copies. Reads and hashes every file of the store.

    Raises:
        StorageError: the store cannot be reached.
    """
    strange = [Problem(f"{shared.remote.url}/{IDENTITY}", e.message, e.hint) for e in [shared.strangeness()] if e]
    if strange and not shared.versions():
        return strange  # each version is missing there, which says nothing new
    changed = _changed(place, shared, reporter)  # before the lock is taken, because it may take long
    with ExitStack() as stack:
        with suppress(StorageError):  # a read-only folder; then what is being published may be listed
            stack.enter_context(place.index.lock())
        query = stack.enter_context(place.index.reading())
        copies = (problem for problem, _ in _copies(place, shared, query))
        return [*strange, *_in_store(shared, query, changed), *copies]


def _rows(query: Query) -> dict[Version, str]:
    """The manifests of all versions in the index; empty for deleted ones."""
    rows = query("SELECT name, version, status, manifest FROM versions ORDER BY name, version")
    return {(name, version): "" if status == "deleted" else text for name, version, status, text in rows}


def _changed(place: Place, shared: SharedStore, reporter: Reporter) -> set[str]:
    with place.index.reading() as query:
        texts = list(_rows(query).values())
    return shared.changed(texts, reporter)


def _in_store(shared: SharedStore, query: Query, changed: set[str]) -> Iterator[Problem]:
    rows, there, sizes = _rows(query), shared.versions(), shared.remote.sizes(BLOBS)
    texts = shared.texts(there & {version for version, text in rows.items() if text})
    for (name, version), text in rows.items():
        if not text:
            continue
        where, about = _where(shared, name, version), manifests.parse(text, _path(shared, name, version))
        for relative, row in about["files"].items():
            path = blob_of(row)
            if path in changed or sizes.get(path) != row["bytes"]:
                said = "was changed" if path in changed else "is missing or incomplete"
                mine = is_whole(_path(shared, name, version).parent / relative, row)
                yield Problem(where, f"{relative} {said} in the store", REPAIR if mine else ELSEWHERE)
        if (name, version) not in there:
            yield Problem(where, "missing, but the version is in the index", REPAIR)
        elif texts.get((name, version)) != text:
            yield Problem(where, "differs from the index: a removal of samples was interrupted", REPAIR)
    for name, version in sorted(there - rows.keys()):
        if wrong := _wrong(shared, name, version):
            fix = "restore what is missing, or remove it from the store"
            yield Problem(_where(shared, name, version), f"not in the index, and incomplete: {wrong}", fix)
        else:
            yield Problem(_where(shared, name, version), "not in the index: publishing was interrupted", REPAIR)


def _copies(place: Place, shared: SharedStore, query: Query) -> Iterator[tuple[Problem, Path]]:
    """Each copy that is not as the index describes the version, and where it is."""
    rows = _rows(query)
    for directory in version_directories(place.store):
        name, version = directory.parent.name, int(directory.name[1:])
        text, where = rows.get((name, version)), place.relative(directory)
        if text == "":
            continue  # deleted: `gc` removes the copy
        if text is None:
            yield Problem(where, "a copy of a version that is not in the index", REPAIR), directory
        elif not shared.is_current(name, version, text):
            yield Problem(where, "a copy that the index describes otherwise", REPAIR), directory
        else:
            about = manifests.parse(text, directory / manifests.FILE_NAME)["files"]
            for relative, what in manifests.differences(directory, about):
                yield Problem(f"{where}/{relative}", what, REPAIR), directory


def _wrong(shared: SharedStore, name: str, version: int) -> str:
    """What is wrong with a version in the store on its own; empty if it is complete."""
    try:
        lacks = shared.lacking(shared.parsed(name, version)[0]["files"])
    except IntegrityError as error:
        return error.message
    return f"{lacks} is missing" if lacks else ""


def repair_store(place: Place, shared: SharedStore, reporter: Reporter, hashes: bool) -> Iterator[str]:
    """Put back what the store has lost and this machine has a copy of, let manifests in the store follow the index, and
    remove damaged copies; one line for each.

    Raises:
        StorageError: the store is not there.
        HubError: it is the store of another hub.
    """
    if shared.reclaim():
        yield f"wrote {shared.remote.url}/{IDENTITY}"
    changed = _changed(place, shared, reporter) if hashes else set()
    with place.index.lock(), place.index.reading() as query:
        rows, there = _rows(query), shared.versions()
        needed, texts = needed_files(rows.values()), shared.texts(there)
        for (name, version), text in rows.items():
            if text:
                path = _path(shared, name, version)
                for relative in shared.restore(path.parent, manifests.parse(text, path)["files"], changed):
                    yield f"put {relative} of {name}@v{version} back into the store"
            if text and texts.get((name, version)) != text:
                shared.follow(name, version, text, needed)
                yield f"wrote {_where(shared, name, version)} from the index"
        for directory in {directory: None for _, directory in _copies(place, shared, query)}:
            files.remove_tree(directory)
            yield f"removed the copy {place.relative(directory)}; it is fetched again when it is used"


def adopt(place: Place, shared: SharedStore, connection: Connection) -> Iterator[str]:
    """Insert the rows of complete versions that are only in the store; one line for each."""
    there = {(row[0], row[1]) for row in connection.exec_driver_sql("SELECT name, version FROM versions")}
    for name, version in sorted(shared.versions() - there):
        if _wrong(shared, name, version):
            continue
        where = _where(shared, name, version)
        try:
            manifest, text = shared.parsed(name, version)
            with connection.begin_nested():
                writes.insert_version(connection, manifest, text, tombstones.forgotten(place.hub))
                writes.apply_moves(connection, manifest)
                writes.publish_event(connection, manifest)
        except UNUSABLE as error:
            yield f"skipped {where}: {reason(error)}"
            continue
        yield f"adopted {where}"


def unneeded(place: Place, shared: SharedStore, needed_by_runs: Sequence[str]) -> dict[str, tuple[str, int]]:
    """What `gc` may delete in the store: path in the store → (why, bytes)."""
    with place.index.lock(), place.index.reading() as query:
        rows = _rows(query)
        deleted = [one for one in sorted(shared.versions()) if rows.get(one) == ""]
        kept = {(n, v) for n, v in deleted if f"{n}@v{v}" in needed_by_runs}
        found = {manifest_at(n, v): ("a deleted version", 0) for n, v in deleted if (n, v) not in kept}
        for path, size in shared.unneeded(needed_files(row[0] for row in query(LIVE_MANIFESTS))).items():
            found[path] = ("a file in the store that no version has", size)
        return found


def collect(place: Place, shared: SharedStore, paths: Sequence[str]) -> None:
    """Delete what `unneeded` found, unless it is needed by now."""
    with place.index.lock(), place.index.reading() as query:
        needed = needed_files(row[0] for row in query(LIVE_MANIFESTS))
        rows = _rows(query)
        for name, version in sorted(shared.versions()):
            if manifest_at(name, version) in paths and rows.get((name, version)) == "":
                shared.drop(name, version, needed)
        for path in set(paths) & shared.unneeded(needed).keys():
            shared.remove_file(path)


def _path(shared: SharedStore, name: str, version: int) -> Path:
    return shared.folder / name / f"v{version}" / manifests.FILE_NAME


def _where(shared: SharedStore, name: str, version: int) -> str:
    return f"{shared.remote.url}/{manifest_at(name, version)}"
