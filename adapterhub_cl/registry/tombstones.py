"""Tombstones: what remains of a forgotten task, under `<hub>/tombstones/`. Hashes and names, nothing else.

A tombstone is written before anything is removed, in the state `removing`, and set to `done` once nothing is left. It
lets an interrupted removal continue, prevents a rebuilt index from restoring the task, and lists what to search for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub_cl.registry import files, shapes

FOLDER = "tombstones"
FORMAT = 2
REMOVING, DONE = "removing", "done"
KINDS, STATES = ("sample", "tensor"), ("searched", "short", "constant", "shared")
_NEVER_ENDED = "9999"  # sorts after every time


def read_all(hub: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All tombstones that can be read, oldest first."""
    found = []
    for path in sorted((hub / FOLDER).glob("*.json")):
        row = read(path)
        if row is not None:
            found.append((path, row))
    return sorted(found, key=lambda item: str(item[1]["started_at"]))


def read(path: Path) -> dict[str, Any] | None:
    """One tombstone; None if the file is not a valid one."""
    try:
        row = shapes.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if _is_one(row) else None


def is_weak(row: Mapping[str, Any]) -> bool:
    """Whether its hashes use no secret key: the salt is beside them, so short texts can be found by guessing."""
    return not row.get("key") and bool(row["items"] or row["files"])


def _is_one(row: Any) -> bool:
    """Whether every field of a tombstone has its type: it may have been edited by hand, or forged."""
    if not isinstance(row, dict) or not shapes.is_count(row.get("format", 1), FORMAT, least=1):
        return False
    texts = ("started_at", "finished_at", "salt")
    if not all(shapes.is_text(row.get(key)) for key in texts) or not shapes.is_a_name(row.get("task")):
        return False
    if row.get("state") not in (REMOVING, DONE) or not isinstance(row.get("since"), str | None):
        return False
    if (row["state"] == DONE) != bool(row["finished_at"]) or not _is_hex(row["salt"]):
        return False
    if not isinstance(row.get("key", ""), str) or row.get("everywhere") not in (None, True, False):
        return False
    lists = ("folders", "tasks_without_adapter", "rows", "sources")
    if not all(isinstance(row.get(key, []), list) and all(map(shapes.is_text, row.get(key, []))) for key in lists):
        return False
    versions, counts, hashes = row.get("versions"), row.get("counts"), row.get("files")
    return (
        "folders" in row
        and "tasks_without_adapter" in row
        and isinstance(versions, list)
        and all(map(_is_version, versions))
        and isinstance(counts, dict)
        and all(map(shapes.is_count, counts.values()))
        and isinstance(hashes, dict)
        and all(map(shapes.is_text, hashes.values()))
        and isinstance(row.get("items"), list)
        and all(map(_is_item, row["items"]))
    )


def _is_version(row: Any) -> bool:
    if not isinstance(row, dict) or shapes.version_of(row.get("ref")) is None:
        return False
    if not row.keys() <= {"ref", "why", "does", "task", "replacement"} or not isinstance(row.get("task", ""), str):
        return False
    after = row.get("replacement")
    known = after is None or shapes.version_of(after) is not None
    return known and all(isinstance(row.get(key), str) for key in ("why", "does"))


def _is_item(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != 4 or not all(map(shapes.is_text, row[:3])):
        return False
    kind, _, state, windows = row
    if kind not in KINDS or state not in STATES or not isinstance(windows, list):
        return False
    return all(
        isinstance(window, list)
        and len(window) == 4
        and shapes.is_count(window[0], 255)
        and shapes.is_count(window[1], 2**32 - 1)
        and shapes.is_count(window[2], 255)
        and shapes.is_text(window[3])
        for window in windows
    )


def _is_hex(text: str) -> bool:
    try:
        return bool(bytes.fromhex(text) or True)
    except ValueError:
        return False


def broken(hub: Path) -> list[Path]:
    """The files among them that are not valid tombstones."""
    return [path for path in sorted((hub / FOLDER).glob("*.json")) if read(path) is None]


def may_be_of(path: Path, task: str) -> bool:
    """Whether a file name is one that `free_path` gives a task's tombstone."""
    number = path.stem.removeprefix(f"{task}-")
    return path.stem == task or (number != path.stem and number.isascii() and number.isdigit())


def free_path(hub: Path, task: str) -> Path:
    """The path of the next tombstone of a task; earlier ones stay as they are."""
    folder, number = hub / FOLDER, 1
    while (path := folder / (f"{task}.json" if number == 1 else f"{task}-{number}.json")).exists():
        number += 1
    return path


def write(path: Path, row: Mapping[str, Any]) -> None:
    """Write a tombstone atomically.

    Raises:
        StorageError: the disk cannot be written; the previous state is untouched.
    """
    with files.storage_errors(path):
        if not path.parent.exists():
            path.parent.mkdir()
            files.fsync_dir(path.parent.parent)
    files.atomic_write_text(path, json.dumps(row, ensure_ascii=False) + "\n")


def forgotten(hub: Path) -> dict[str, str]:
    """Task → the time up to which it is forgotten. Anything newer belongs to a task that was learned again."""
    found: dict[str, str] = {}
    for _, row in read_all(hub):
        until = str(row.get("finished_at") or _NEVER_ENDED)
        found[row["task"]] = max(found.get(row["task"], ""), until)
    return found


def removed(hub: Path) -> set[str]:
    """The versions that completed removals have deleted: their numbers are not used again."""
    return {version["ref"] for _, row in read_all(hub) if row["state"] == DONE for version in row["versions"]}
