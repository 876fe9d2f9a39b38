"""Versions of a base that was only moved or saved again are copied as they are, under the new fingerprint."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.types import AdapterRecord, Evaluation, Task

REBOUND = "rebound"


def to_copy(old: Registry, tasks: Collection[str]) -> list[AdapterRecord]:
    """The versions that serve these tasks, and for a task that an adapter of several serves its own newest one; those
    that serve come last, so that they serve in the new hub as well."""
    serving = old.serving()
    refs = {ref for task, ref in serving.items() if task in tasks}
    serves = {ref: old.get(ref) for ref in refs}
    wanted = {task for record in serves.values() for task in record.tasks}
    own: dict[str, AdapterRecord] = {}
    for record in sorted(old.adapters(all_versions=True), key=lambda record: record.created_at):
        if record.task in wanted and record.status == "active" and record.ref not in refs:
            own[record.task] = record
    served_alone = {record.task for record in serves.values()}
    before = [record for task, record in own.items() if task not in served_alone]
    return [*before, *sorted(serves.values(), key=lambda record: record.created_at)]


def origin(old: Registry, record: AdapterRecord) -> dict[str, Any]:
    """What the manifest of a moved version says of the old one: its hub, its reference, its base."""
    base = {"source": old.base.source, "fingerprint": old.base.fingerprint}
    return {"hub": old.path.resolve().name, "ref": record.ref, "base": base}


def rebind(old: Registry, new: Registry, record: AdapterRecord) -> AdapterRecord:
    """Copy one version of a base whose weights are the same.

    Raises:
        IntegrityError: a file is missing or changed.
        StorageError: the disk refused; nothing was published.
    """
    told = {**origin(old, record), "source": REBOUND}
    scores = [Evaluation(**row) for row in record.manifest.get("evaluations", ())]
    return copy_version(old, new, record, {"rebased_from": told}, scores)


def copy_version(
    old: Registry, new: Registry, record: AdapterRecord, told: Mapping[str, Any], scores: Sequence[Evaluation]
) -> AdapterRecord:
    """Publish a version's files, unchanged, in the hub on the other base; they are checked first.

    Args:
        told: entries of the manifest that differ from those of the old version.

    Raises:
        IntegrityError: a file is missing or changed.
        StorageError: the disk refused; nothing was published.
    """
    old.check_files(record)
    made = record.manifest
    with new.new_draft(record.name) as draft, storage_errors(draft.path):
        for name in made["files"]:
            target = draft.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.path / name, target)
        spec = made.get("task_spec")
        base = {"source": new.base.source, "fingerprint": new.base.fingerprint}
        return new.publish(
            draft,
            {**made, "base": base, **told},
            evaluations=scores,
            task=Task.from_json(spec) if spec else None,
            verb="rebase",
            repeats=False,
        )


def copied(new: Registry) -> dict[str, AdapterRecord]:
    """Old reference → its copy, of every version that was rebound."""
    found = {}
    for record in new.adapters(all_versions=True):
        told = record.manifest.get("rebased_from") or {}
        if told.get("source") == REBOUND:
            found[str(told["ref"])] = record
    return found
