"""Publishing: a draft becomes a version, completely or not at all.

Order: the files are hashed and synced; then, under the lock and in one transaction, the number is taken, the manifest
written, the directory renamed, the rows inserted, and all of it committed. A kill before the rename leaves a `.tmp-`
directory; between rename and commit, a complete version without rows, which `repair` adopts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError, AdapterHubError
from adapterhub_cl.registry import changes, drafts, files, manifests, mirror, tombstones, writes
from adapterhub_cl.registry.drafts import Draft
from adapterhub_cl.registry.index import Index
from adapterhub_cl.registry.rebuilding import version_directories
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
) -> int:
    """Make the draft the next version of its adapter; see `Registry.publish`.

    Returns:
        The version's number; that of an existing one if a call that was killed had already made it.
    """
    if draft.published:
        raise AdapterError(f"this draft of {draft.name} is already published", "create a new draft")
    with changes.operation():
        return _publish(index, draft, given, edges, evaluations, task, published, repeats, number)


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
) -> int:
    sealed = draft.seal()
    manifest = manifests.build(
        given, name=draft.name, task=task, edges=edges, evaluations=evaluations, files=sealed, published=published
    )
    drafts.fault("sealed")
    store = draft.path.parent
    with index.lock():
        if repeats and manifest["kind"] in REPEATABLE and (same := _finished(index, store, manifest)) is not None:
            return same
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


def _number(connection: Connection, name: str, store: Path, wanted: int | None) -> int:
    """The number of a new version: the next one, or the one that is wanted if it was never used."""
    if wanted is None:
        return writes.next_version(connection, name, store)
    if writes.is_used(connection, name, wanted) or (store / f"v{wanted}").exists():
        raise AdapterError(f"{name}@v{wanted} exists already, or existed", f"see cl-adapter log {name}")
    return wanted


def _finished(index: Index, store: Path, manifest: Mapping[str, Any]) -> int | None:
    """The newest version of the adapter, if it is the one about to be published: the same bytes, made in the same way
    from the same versions. Repeating a call that was killed after the version was in place ends up here.

    Missing rows are inserted, and `latest` is moved to it.
    """
    there = [p for p in version_directories(store.parent) if p.parent == store]
    newest = max(there, key=lambda path: int(path.name[1:]), default=None)
    if newest is None:
        return None
    number = int(newest.name[1:])
    with index.reading() as query:
        rows_there = query("SELECT version, status FROM versions WHERE name = :name", name=store.name)
        latest = query("SELECT version FROM aliases WHERE name = :name AND alias = :a", name=store.name, a=LATEST)
    statuses: dict[int, str] = dict(rows_there)
    if max([number, *statuses]) != number or statuses.get(number) == "deleted":
        return None
    try:
        found, text = manifests.read(newest)
    except AdapterHubError:
        return None
    if _made_of(found) != _made_of(manifest) or any(manifests.differences(newest, found["files"])):
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
