"""Where the rows of a task lie. No torch: a missing file is told at once."""

from __future__ import annotations

from pathlib import Path


def files_of(prefix: str) -> tuple[Path, Path]:
    """`folder` → folder/train.jsonl and test.jsonl; `path/name` → path/name.train.jsonl and name.test.jsonl."""
    folder = Path(prefix)
    if folder.is_dir():
        return folder / "train.jsonl", folder / "test.jsonl"
    return Path(f"{prefix}.train.jsonl"), Path(f"{prefix}.test.jsonl")
