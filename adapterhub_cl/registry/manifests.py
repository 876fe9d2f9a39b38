"""A version's `manifest.json`: everything needed to rebuild its index rows, and the SHA-256 of each file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterError, IntegrityError, UsageError
from adapterhub_cl.registry import shapes
from adapterhub_cl.registry.files import is_safe_relative, now, sha256_file, walk_files
from adapterhub_cl.registry.names import is_name
from adapterhub_cl.types import KINDS, RELATIONS, STATUSES, Evaluation, Task

FILE_NAME = "manifest.json"
FORMAT = 1
_SHAPE: dict[str, type] = {
    "kind": str,
    "task": str,
    "status": str,
    "created_at": str,
    "rank": int,
    "bytes": int,
    "files": dict,
    "lineage": list,
    "evaluations": list,
    "published": dict,
}
_WORDS = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}
_RESTORE = "restore it from a copy of the hub, or remove the directory"
_TOLD = 3  # the most problems that a message lists


def build(
    given: Mapping[str, Any],
    *,
    name: str,
    task: Task | None,
    edges: Sequence[tuple[str, str]],
    evaluations: Sequence[Evaluation],
    files: Mapping[str, Mapping[str, Any]],
    published: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of a version that has no number yet (`version` is 0).

    Raises:
        UsageError: an unknown kind or status.
        AdapterError: a score that is not a finite number.
    """
    task_name = task.name if task is not None else str(given.get("task") or "")
    manifest: dict[str, Any] = {
        **given,
        "format": FORMAT,
        "name": name,
        "version": 0,
        "kind": given.get("kind", "trained"),
        "task": task_name,
        "task_spec": task.to_json() if task is not None else None,
        "status": given.get("status", "active"),
        "rank": int(given.get("rank", 0)),
        "created_at": given.get("created_at") or now(),
        "lineage": [{"parent": parent, "relation": relation} for parent, relation in edges],
        "evaluations": [evaluation.to_json() for evaluation in evaluations],
        "published": dict(published),
        "files": {key: dict(files[key]) for key in sorted(files)},
        "bytes": sum(int(row["bytes"]) for row in files.values()),
    }
    check_scores(evaluations)
    for value, known, what in [
        (manifest["kind"], KINDS, "kind"),
        (manifest["status"], STATUSES[:2], "status"),
    ]:
        if value not in known:
            raise UsageError(f"unknown {what} {value!r}", f"known: {', '.join(known)}")
    return manifest


def check_relations(edges: Sequence[tuple[str, str]]) -> None:
    for _, relation in edges:
        if relation not in RELATIONS:
            raise UsageError(f"unknown relation {relation!r}", f"known: {', '.join(RELATIONS)}")


def check_scores(evaluations: Sequence[Evaluation]) -> None:
    """Raise AdapterError for a score that is not a finite number."""
    for evaluation in evaluations:
        if not math.isfinite(evaluation.value):
            raise AdapterError(
                f"the {evaluation.metric} on {evaluation.task} is {evaluation.value}; nothing was recorded",
                "training has probably diverged: train again with a lower --learning-rate",
            )


def dump(manifest: Mapping[str, Any]) -> str:
    """The manifest as it is written to the file and to the index."""
    return json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(directory: Path) -> tuple[dict[str, Any], str]:
    """The manifest of a version directory `…/<name>/v<N>`, and its text.

    Raises:
        IntegrityError: it is missing, invalid, from a newer version, or belongs to another directory.
    """
    path = directory / FILE_NAME
    try:
        if path.is_symlink():
            raise IntegrityError(f"{path} is a link", _RESTORE)
        text = path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", _RESTORE) from error
    return parse(text, path), text


def parse(text: str, path: Path) -> dict[str, Any]:
    """Parse and check the text of `…/<name>/v<N>/manifest.json`.

    Raises:
        IntegrityError: it is invalid, from a newer version, or belongs to another directory.
    """
    try:
        manifest = shapes.parse(text)
    except ValueError as error:
        raise IntegrityError(f"{path} cannot be read: {error}", _RESTORE) from error
    if wrong := list(_wrong(manifest, path.parent)):
        more = f"; and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
        raise IntegrityError(f"{path} is not a valid manifest: {'; '.join(wrong[:_TOLD])}{more}", _RESTORE)
    found: dict[str, Any] = manifest
    return found


def _wrong(manifest: Any, directory: Path) -> Iterator[str]:
    if not isinstance(manifest, dict):
        yield "not an object"
        return
    if not shapes.is_count(manifest.get("format"), FORMAT):
        yield f"format {shapes.shown(manifest.get('format'))} is not supported by this version"
    name, version = manifest.get("name"), manifest.get("version")
    right = name == directory.parent.name and f"v{version}" == directory.name and is_name(str(name))
    if not right or not shapes.is_count(version, shapes.LAST_VERSION, least=1):
        yield f"it belongs to the adapter {shapes.shown(name)}, version {shapes.shown(version)}"
    for key, kind in _SHAPE.items():
        if not isinstance(manifest.get(key), kind):
            yield f"{key} is missing or not {_WORDS[kind]}"
            return
    if manifest["kind"] not in KINDS or manifest["status"] not in STATUSES:
        yield f"unknown kind or status ({shapes.shown(manifest['kind'])}, {shapes.shown(manifest['status'])})"
    for key, row in manifest["files"].items():
        if not is_safe_relative(key):
            yield f"the file name {shapes.shown(key)} points outside of the directory"
        elif not isinstance(row, dict) or not isinstance(row.get("sha256"), str):
            yield f"no sha256 for {shapes.shown(key)}"
        elif not shapes.is_count(row.get("bytes")):
            yield f"no size for {shapes.shown(key)}"
    yield from shapes.wrong_parts(manifest)


def differences(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The differences between a version directory and its manifest's `files`: (relative path, what is wrong).

    Every file is hashed. Links always count as wrong, so nothing outside the directory is read.
    """
    present, odd = walk_files(directory)
    for relative in odd:
        yield relative, "a link or special file, which is not allowed in a version"
    for relative, row in files.items():
        path = present.get(relative)
        if path is None:
            if relative not in odd:
                yield relative, "missing"
        elif path.stat().st_size != row.get("bytes"):
            yield relative, f"has {path.stat().st_size} bytes, but {row.get('bytes')} were recorded"
        elif sha256_file(path) != row["sha256"]:
            yield relative, "changed: its SHA-256 differs from the recorded one"
    for relative in sorted(present.keys() - files.keys() - {FILE_NAME}):
        yield relative, "extra: not in the manifest"
