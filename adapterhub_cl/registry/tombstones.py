"""Tombstones: what is left of a task that was forgotten, under `<hub>/tombstones/`. Hashes and names, nothing else.

A tombstone is written before anything is removed, with the state `removing`, and is `done` once nothing is left. It
makes an interrupted removal go on, keeps a rebuilt index from bringing the task back, and says what to search for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub_cl.registry import files

FOLDER = "tombstones"
FORMAT = 1
REMOVING, DONE = "removing", "done"
_NEVER_ENDED = "9999"  # stands behind every time


def read_all(hub: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All tombstones that can be read, oldest first."""
    found = []
    for path in sorted((hub / FOLDER).glob("*.json")):
        row = read(path)
        if row is not None:
            found.append((path, row))
    return sorted(found, key=lambda item: str(item[1]["started_at"]))


def read(path: Path) -> dict[str, Any] | None:
    """One tombstone; None where the file is not one."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and {"task", "state", "started_at", "versions"} <= row.keys() else None


def broken(hub: Path) -> list[Path]:
    """The files among them that are no tombstones."""
    return [path for path in sorted((hub / FOLDER).glob("*.json")) if read(path) is None]


def free_path(hub: Path, task: str) -> Path:
    """Where the next tombstone of a task is written; earlier ones stay as they are."""
    folder, number = hub / FOLDER, 1
    while (path := folder / (f"{task}.json" if number == 1 else f"{task}-{number}.json")).exists():
        number += 1
    return path


def write(path: Path, row: Mapping[str, Any]) -> None:
    """Write a tombstone, all or nothing.

    Raises:
        StorageError: the disk refused; an older state of it is untouched.
    """
    with files.storage_errors(path):
        if not path.parent.exists():
            path.parent.mkdir()
            files.fsync_dir(path.parent.parent)
    files.atomic_write_text(path, json.dumps(row, ensure_ascii=False) + "\n")


def forgotten(hub: Path) -> dict[str, str]:
    """Task → until when what was known of it is forgotten. What is newer is of a task that was learned again."""
    found: dict[str, str] = {}
    for _, row in read_all(hub):
        until = str(row.get("finished_at") or _NEVER_ENDED)
        found[row["task"]] = max(found.get(row["task"], ""), until)
    return found


def removed(hub: Path) -> set[str]:
    """The versions that finished removals took away: their numbers are not used again."""
    return {version["ref"] for _, row in read_all(hub) if row["state"] == DONE for version in row["versions"]}
