"""Imports a LoRA that plain PEFT wrote: checked, loaded on the base once, published with its origin."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub_cl.adapters.cards import card
from adapterhub_cl.adapters.head_files import read_layout, write_layout
from adapterhub_cl.adapters.heads import check_kind, read_head
from adapterhub_cl.adapters.lora import stored_adapter
from adapterhub_cl.adapters.lora_config import CONFIG, WEIGHTS, check_config, facts_of
from adapterhub_cl.adapters.lora_files import is_packed
from adapterhub_cl.adapters.origin import check_origin, described_task, plainly, read_origin
from adapterhub_cl.adapters.serving_check import check_served
from adapterhub_cl.bases.encoders import head_of
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.tasks import described_otherwise
from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.objectives import name_for
from adapterhub_cl.registry import Registry, check_new, storage_errors
from adapterhub_cl.types import AdapterRecord, HeadRows, Task


def import_adapter(
    registry: Registry,
    base: LoadedBase,
    source: Path,
    name: str,
    task: Task | None,
    described: Mapping[str, Any],
    any_base: bool = False,
) -> AdapterRecord:
    """Publish the adapter in a folder as a new version.

    What this project wrote beside it (the manifest of a version, the task.json of an export) says which base it is for
    and how it is prompted.

    Args:
        task: the task that it serves; None creates one with its own name from `described` and the files there.
        any_base: import it even if it was made for another base.

    Raises:
        UsageError: the folder does not exist, or the description is not usable.
        AdapterError: not a LoRA, or not of this base.
        IntegrityError: its files cannot be read.
    """
    check_new(name)
    if not source.is_dir():
        raise UsageError(f"the folder {source} does not exist", "give the folder that PEFT's save_pretrained() wrote")
    if not (source / CONFIG).is_file():
        raise UsageError(f"{source} has no {CONFIG}", "give the folder that PEFT's save_pretrained() wrote")
    if not (source / WEIGHTS).is_file():
        pickled = (source / "adapter_model.bin").is_file()
        if is_packed(source):
            raise AdapterError(f"the adapter in {source} is packed", "cl-adapter export writes it in PEFT's format")
        raise AdapterError(
            f"{source} has no {WEIGHTS}" + (", only a pickle, which is never loaded" if pickled else ""),
            "save it again with PEFT's save_pretrained(safe_serialization=True)",
        )
    check_kind(base.model, source, check_config(source))
    known = read_origin(source)
    check_origin(known, base.info, source, any_base)
    if task is None and not described.get("labels") and len(written := read_layout(source)) == 1:
        described = {**described, "labels": tuple(next(iter(written.values())))}  # as this project exported it
    serves = task or described_task(name, described, known)
    there = {one.name: one for one in registry.tasks()}.get(serves.name)
    if task is None and there is not None and described_otherwise(there, serves):
        raise UsageError(
            f"this hub describes the task {serves.name} otherwise: its kind ({there.kind} here, {serves.kind} there), "
            "labels, prompt format or instruction differ",
            f"import it under another name: --as NAME; or say that it is for the hub's task: --task {serves.name}",
        )
    if serves.kind == "generation" and base.is_encoder:
        raise UsageError(
            f"{base.info.source!r} is an encoder, and the labels of the rows of the adapter's head are unknown",
            "list them in the order of the rows: --labels a,b,c",
        )
    name_for(base.info, serves.kind)
    with plainly(source, base) as plain, stored_adapter(base, plain) as model:
        check_served(model, base, plain, f"the adapter in {source}")
        head = _layout(base, source, serves)
        edges = [(str(source.resolve()), "imported_from")]
        with registry.new_draft(name) as draft, storage_errors(draft.path):
            for file in (CONFIG, WEIGHTS):
                shutil.copyfile(plain / file, draft.path / file)
            own = head_of(base.model)
            if head is not None and own is not None:
                write_layout(draft.path, head, own.final)
            (draft.path / "replay.jsonl").touch()
            (draft.path / "README.md").write_text(card(name, base.info, serves, [], {}, edges, head), encoding="utf-8")
            manifest = {"kind": "imported", **facts_of(plain, base.info)}
            # An imported adapter does not replace the one that serves a task; use alias or promote for that.
            serve = serves.name not in registry.serving()
            return registry.publish(draft, manifest, edges=edges, task=serves, serve=serve, verb="import")


def _layout(base: LoadedBase, source: Path, task: Task) -> HeadRows | None:
    """The meaning of an encoder adapter's head rows: as recorded beside it, otherwise the task's labels in order.

    Raises:
        UsageError: the numbers of rows and labels differ.
    """
    head = head_of(base.model)
    stored = read_head(source, head.final) if head is not None else None
    if stored is None:
        return None
    count, labels = len(stored.weight), task.labels
    known = stored.layout.get(task.name)
    if known is None and len(stored.layout) == 1:
        known = next(iter(stored.layout.values()))
        if set(known) != set(labels):
            theirs, asked = ", ".join(known), ", ".join(labels)
            raise UsageError(
                f"the adapter in {source} has rows for {theirs} (heads.json), but the task's labels are {asked}",
                "import it for a task with these labels, or omit --labels",
            )
    if known is None and count == len(labels):
        known = {label: row for row, label in enumerate(labels)}
    if known is None or not set(known) <= set(labels):
        raise UsageError(
            f"the adapter in {source}: its head has {count} rows, but the task has {len(labels)} labels",
            "list the labels in the order of its rows: --labels a,b,c",
        )
    return {**stored.layout, task.name: known} if task.name in stored.layout else {task.name: known}
