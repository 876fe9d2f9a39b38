"""A fixed draw of rows of cl15's tasks (../shared/data), for benchmarks that take few of them."""

from __future__ import annotations

import random
from pathlib import Path

from adapterhub_cl.registry.files import atomic_write_text

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "cl15"


def write_rows(folder: Path, task: str, rows: int, tests: int) -> tuple[Path, Path]:
    """`<task>.train.jsonl` and `<task>.test.jsonl`, with so many rows at most."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{task}.train.jsonl", folder / f"{task}.test.jsonl"
    for path, split, most in zip(paths, ("train", "test"), (rows, tests), strict=True):
        lines = (DATA / task / f"{split}.jsonl").read_text(encoding="utf-8").strip().split("\n")
        random.Random(f"{task} {split}").shuffle(lines)
        atomic_write_text(path, "\n".join(lines[:most]) + "\n")
    return paths
