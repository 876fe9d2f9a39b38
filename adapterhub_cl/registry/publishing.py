"""Publishing: a draft becomes a version, completely or not at all.

Order: the files are hashed and synced; then, under the lock and in one transaction, the number is taken, the manifest
written, the directory renamed, the rows inserted, and all of it committed. A kill before the rename leaves a `.tmp-`
directory; between rename and commit, a complete version without rows, which `repair` adopts. In a hub with a shared
store, the manifest in the store takes the place of the rename, and the directory follows after the commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError, AdapterHubError, StorageError
from adapterhub_cl.registry import changes, drafts, files, manifests, mirror, tombstones, writes
from adapterhub_cl.registry.drafts import Draft
from adapterhub_cl.registry.index import Index
from adapterhub_cl.registry.rebuilding import version_directories
from adapterhub_cl.registry.shared_store import SharedStore
from adapterhub_cl.types import LATEST, Evaluation, Task

if TYPE_CHECKING:
    from sqlalchemy import Connection

REPEATABLE = ("imported", "merged", "distilled", "pruned")  # deterministic: the same inputs give the same version
TOLD = ("README.md", "recipe.json")  # these contain times and scores too


def publish(
    index: Index,
    draft: Draft,
    given: Mapping[str, Any],
    *,
    edges: Sequence[tuple[str, str]],
    evaluations: Sequence[Evaluation],
    task: Task | None,
    published: Mapping[str, Any],
    repeats: bool = True,
    number: int | None = None,
    shared: SharedStore | None = None,
) -> int:
    """Make the draft the next version of its adapter; see `Registry.publish`.

    Returns:
        The version's number; that of an existing one if a call that was killed had already made it.
    """
    if draft.published:
        raise AdapterError(f"this draft of {draft.name} is already published", "create a new draft")
    with changes.operation():
        return _publish(index, draft, given, edges, evaluations, task, published, repeats, number, shared)


def _publish(
    index: Index,
    draft: Draft,
    given: Mapping[str, Any],
    edges: Sequence[tuple[str, str]],
    evaluations: Sequence[Evaluation],
    task: Task | None,
    published: Mapping[str, Any],
    repeats: bool = True,
    number: int | None = None,
    shared: SharedStore | None = None,
) -> int:
    sealed = draft.seal()
    manifest = manifests.build(
        given, name=draft.name, task=task, edges=edges, evaluations=evaluations, files=sealed, published=published
    )
    drafts.fault("sealed")
    store = draft.path.parent
    if shared is not None:
        shared.upload(draft.path, sealed)  # before the lock is taken, because it may take long
        drafts.fault("files uploaded")
    with index.lock():
        if repeats and manifest["kind"] in REPEATABLE and (same := _finished(index, store, manifest, shared)):
            return same
        if shared is not None:
            return _publish_shared(index, draft, manifest, sealed, shared, number)
        final: Path | None = None
        try:
            with mirror.following(index.hub, index) as connection:
                manifest["version"] = version = _number(connection, draft.name, store, number)
                text = manifests.dump(manifest)
                final = store / f"v{version}"
                draft.move_to(final, text)
                drafts.fault("renamed")
                with files.storage_errors(store):
                    files.fsync_dir(store)
                    files.fsync_dir(store.parent)
                writes.insert_version(connection, manifest, text)
                writes.apply_moves(connection, manifest)
                writes.publish_event(connection, manifest)
                drafts.fault("rows inserted")
        except BaseException:
            if final is not None and draft.published and not _is_committed(index, draft.name, final.name):
                draft.move_back(final)
            raise
    return version


def _publish_shared(
    index: Index,
    draft: Draft,
    manifest: dict[str, Any],
    sealed: Mapping[str, Mapping[str, Any]],
    shared: SharedStore,
    number: int | None,
) -> int:
    """Publish a draft whose files were uploaded: the manifest in the store, then the rows, then the copy here."""
    name, created, version = draft.name, False, 0
    try:
        with mirror.following(index.hub, index) as connection:
            used = shared.numbers(name)
            manifest["version"] = version = _number(connection, name, draft.path.parent, number, used)
            text = manifests.dump(manifest)
            shared.upload(draft.path, sealed)  # what `gc` of another machine has deleted since
            if not shared.create(name, version, text):
                raise StorageError(f"another writer has just put {name}@v{version} into {shared.url}", "try again")
            created = True
            drafts.fault("manifest created")
            writes.insert_version(connection, manifest, text)
            writes.apply_moves(connection, manifest)
            writes.publish_event(connection, manifest)
            drafts.fault("rows inserted")
    except BaseException:
        if created and not _is_committed(index, name, f"v{version}"):
            with suppress(AdapterHubError):  # `verify` lists it otherwise
                shared.drop_manifest(name, version)
        raise
    draft.published = shared.adopt(draft.path, name, version, text)
    return version


def _number(connection: Connection, name: str, store: Path, wanted: int | None, in_store: Sequence[int] = ()) -> int:
    """The number of a new version: the next one, or the one that is wanted if it was never used."""
    if wanted is None:
        return max([writes.next_version(connection, name, store), *(number + 1 for number in in_store)])
    if writes.is_used(connection, name, wanted) or (store / f"v{wanted}").exists() or wanted in in_store:
        raise AdapterError(f"{name}@v{wanted} exists already, or existed", f"see cl-adapter log {name}")
    return wanted


def _finished(index: Index, store: Path, manifest: Mapping[str, Any], shared: SharedStore | None = None) -> int | None:
    """The newest version of the adapter, if it is the one about to be published: the same bytes, made in the same way
    from the same versions. Repeating a call that was killed after the version was in place ends up here.

    Missing rows are inserted, and `latest` is moved to it.
    """
    if shared is None:
        numbers = [int(p.name[1:]) for p in version_directories(store.parent) if p.parent == store]
    else:
        numbers = shared.numbers(store.name)
    if not numbers:
        return None
    number = max(numbers)
    with index.reading() as query:
        rows_there = query("SELECT version, status FROM versions WHERE name = :name", name=store.name)
        latest = query("SELECT version FROM aliases WHERE name = :name AND alias = :a", name=store.name, a=LATEST)
    statuses: dict[int, str] = dict(rows_there)
    if max([number, *statuses]) != number or statuses.get(number) == "deleted":
        return None
    try:
        newest = store / f"v{number}"
        found, text = manifests.read(newest) if shared is None else shared.parsed(store.name, number)
    except AdapterHubError:
        return None
    if _made_of(found) != _made_of(manifest):
        return None
    if any(manifests.differences(newest, found["files"])) if shared is None else shared.lacking(found["files"]):
        return None
    moved = (number,) in latest or found["status"] != "active" or not found["published"]["move_latest"]
    if number not in statuses or not moved:
        with mirror.following(index.hub, index) as connection:
            if number not in statuses:
                writes.insert_version(connection, found, text, tombstones.forgotten(index.hub))
                writes.publish_event(connection, found)
            writes.apply_moves(connection, found)
    return number


def _made_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two versions the same: everything but times, scores and descriptions."""
    files_of = {name: row["sha256"] for name, row in manifest["files"].items() if name not in TOLD}
    keys = ("kind", "status", "task", "task_spec", "takes_over", "lineage", "recipe", "base")
    same: dict[str, Any] = json.loads(json.dumps({key: manifest.get(key) for key in keys}))  # turns tuples into lists
    return {**same, "files": files_of}


def _is_committed(index: Index, name: str, version: str) -> bool:
    """Whether the rows were committed despite the error; assumed if the index cannot be read."""
    with suppress(AdapterHubError), index.reading() as query:
        return bool(query("SELECT 1 FROM versions WHERE name = :name AND version = :v", name=name, v=int(version[1:])))
    return True
