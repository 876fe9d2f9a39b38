"""Versions of a base that was only moved or saved again are copied as they are, under the new fingerprint."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.registry.names import is_outside
from adapterhub_cl.types import LATEST, PRODUCTION, AdapterRecord, Evaluation, Task

REBOUND = "rebound"


def to_copy(old: Registry, tasks: Collection[str]) -> list[AdapterRecord]:
    """The versions that serve these tasks, and all active versions of those tasks, in the order in which they were
    made."""
    refs = {ref for task, ref in old.serving().items() if task in tasks}
    wanted = {task for ref in refs for task in old.get(ref).tasks}
    found = [
        record
        for record in old.adapters(all_versions=True)
        if record.status == "active" and (record.ref in refs or record.task in wanted)
    ]
    return sorted(found, key=lambda record: (record.created_at, record.version))


def origin(old: Registry, record: AdapterRecord) -> dict[str, Any]:
    """What the manifest of a moved version says of the old one: its hub, its reference, when it was made, its base."""
    base = {"source": old.base.source, "fingerprint": old.base.fingerprint}
    return {"hub": old.path.resolve().name, "ref": record.ref, "made_at": record.created_at, "base": base}


def rebind(old: Registry, new: Registry, record: AdapterRecord, copies: Mapping[str, AdapterRecord]) -> AdapterRecord:
    """Copy one version of a base whose weights are the same, under its own number, with its lineage.

    Args:
        copies: old reference → copy, of the versions that were copied before; other parents are named where they lie.

    Raises:
        IntegrityError: a file is missing or changed.
        StorageError: the disk refused; nothing was published.
    """
    told = {**origin(old, record), "source": REBOUND}
    scores = [Evaluation(**row) for row in record.manifest.get("evaluations", ())]
    there = [other.version for other in new.adapters(all_versions=True) if other.name == record.name]
    return copy_version(
        old,
        new,
        record,
        {"rebased_from": told},
        scores,
        edges=[(_parent(old, edge, copies), str(edge["relation"])) for edge in record.manifest["lineage"]],
        serve=record.ref in old.serving().values(),
        number=record.version if record.version > max(there, default=0) else None,
    )


def follow(old: Registry, new: Registry, tasks: Collection[str], copies: Mapping[str, AdapterRecord]) -> list[str]:
    """Let the copies serve, and be the latest, as the versions do in the old hub by now. What was made or promoted in
    the new hub stays; notes say so.

    Args:
        copies: old reference → copy.
    """
    own = {copy.ref for copy in copies.values()}
    for record in old.adapters():
        copy = copies.get(record.ref) if set(record.tasks) & set(tasks) else None
        if copy is not None and new.get(copy.name).ref in own - {copy.ref}:
            new.set_alias(copy.ref, LATEST, reason="rebase")
    notes, there = [], new.serving()
    for task, ref in old.serving().items():
        if task not in tasks or there.get(task) == copies[ref].ref:
            continue
        serves = new.get(there[task]) if task in there else None
        if serves is None or (serves.ref in own and PRODUCTION not in serves.aliases):
            new.serve(task, copies[ref].ref)
        else:
            notes.append(
                f"note: {serves.ref} goes on serving {task} in the new hub, where it was made or promoted; to let "
                f"{copies[ref].ref} serve as in the old hub: cl-adapter --hub {new.path} promote {copies[ref].ref}"
            )
    return notes


def _parent(old: Registry, edge: Mapping[str, Any], copies: Mapping[str, AdapterRecord]) -> str:
    parent = str(edge["parent"])
    if parent in copies:
        return copies[parent].ref
    outside = edge["relation"] == "imported_from" or is_outside(parent)
    return parent if outside else str(old.path.resolve() / parent)


def copy_version(
    old: Registry,
    new: Registry,
    record: AdapterRecord,
    told: Mapping[str, Any],
    scores: Sequence[Evaluation],
    *,
    folder: Path | None = None,
    card: str = "",
    **publishing: Any,
) -> AdapterRecord:
    """Publish a version's files in the hub on the other base; they are checked first.

    Args:
        told: entries of the manifest that differ from those of the old version.
        folder: has the files to publish in their place; None publishes them unchanged.
        card: the README; that of the version if it is empty.
        publishing: further arguments of `Registry.publish`.

    Raises:
        IntegrityError: a file is missing or changed.
        StorageError: the disk refused; nothing was published.
    """
    old.check_files(record)
    other = ("created_at", *(("storage",) if folder else ()))
    made = {key: value for key, value in record.manifest.items() if key not in other}
    with new.new_draft(record.name) as draft, storage_errors(draft.path):
        source = folder or record.path
        names = made["files"] if folder is None else [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
        for name in names:
            target = draft.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
        if card:
            (draft.path / "README.md").write_text(card, encoding="utf-8")
        spec = made.get("task_spec")
        base = {"source": new.base.source, "fingerprint": new.base.fingerprint}
        return new.publish(
            draft,
            {**made, "base": base, **told},
            evaluations=scores,
            task=Task.from_json(spec) if spec else None,
            verb="rebase",
            repeats=False,
            **publishing,
        )


def copied(new: Registry) -> dict[str, AdapterRecord]:
    """Old reference → its copy, of every version that was rebound."""
    found = {}
    for record in new.adapters(all_versions=True):
        told = record.manifest.get("rebased_from") or {}
        if told.get("source") == REBOUND:
            found[str(told["ref"])] = record
    return found
