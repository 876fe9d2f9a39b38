"""Publication: a draft becomes a version, wholly or not at all.

Order: files hashed and synced; then, under the lock and in one transaction, the number is taken, the manifest
written, the directory renamed, the rows inserted, and all committed. Stopped before the rename, a `.tmp-` directory
is left; between rename and commit, a whole version without rows, which `repair` adopts; after the commit, all is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterError, AdapterHubError
from adapterhub_cl.registry import changes, drafts, files, manifests, mirror, rows
from adapterhub_cl.registry.drafts import Draft
from adapterhub_cl.registry.index import Index
from adapterhub_cl.types import Evaluation, Task


def publish(
    index: Index,
    draft: Draft,
    given: Mapping[str, Any],
    *,
    edges: Sequence[tuple[str, str]],
    evaluations: Sequence[Evaluation],
    task: Task | None,
    published: Mapping[str, Any],
) -> int:
    """Make the draft the next version of its adapter; see `Registry.publish`.

    Returns:
        The version's number.
    """
    if draft.published:
        raise AdapterError(f"this draft of {draft.name} is already published", "make a new draft")
    with changes.operation():
        return _publish(index, draft, given, edges, evaluations, task, published)


def _publish(
    index: Index,
    draft: Draft,
    given: Mapping[str, Any],
    edges: Sequence[tuple[str, str]],
    evaluations: Sequence[Evaluation],
    task: Task | None,
    published: Mapping[str, Any],
) -> int:
    sealed = draft.seal()
    manifest = manifests.build(
        given, name=draft.name, task=task, edges=edges, evaluations=evaluations, files=sealed, published=published
    )
    drafts.fault("sealed")
    store = draft.path.parent
    with index.lock():
        final: Path | None = None
        try:
            with mirror.following(index.hub, index) as connection:
                manifest["version"] = version = rows.next_version(connection, draft.name, store)
                text = manifests.dump(manifest)
                final = store / f"v{version}"
                draft.move_to(final, text)
                drafts.fault("renamed")
                with files.storage_errors(store):
                    files.fsync_dir(store)
                    files.fsync_dir(store.parent)
                rows.insert_version(connection, manifest, text)
                rows.apply_moves(connection, manifest)
                rows.publish_event(connection, manifest)
                drafts.fault("rows inserted")
        except BaseException:
            if final is not None and draft.published and not _is_committed(index, draft.name, final.name):
                draft.move_back(final)
            raise
    return version


def _is_committed(index: Index, name: str, version: str) -> bool:
    """Whether the rows are there after all (the error came after the commit); assumed where it cannot be read."""
    with suppress(AdapterHubError), index.reading() as query:
        return bool(query("SELECT 1 FROM versions WHERE name = :name AND version = :v", name=name, v=int(version[1:])))
    return True
