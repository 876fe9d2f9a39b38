"""Runs of a benchmark, each in a process of its own and made once, also where several processes share a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adapterhub_cl.registry.files import atomic_write_text


def name_of(job: Sequence[object]) -> str:
    return "-".join(map(str, job))


def prepare(work: Path, asked: Mapping[str, Any], *more: str) -> None:
    """Make the folders, and keep what was asked for; exits where the folder holds runs of something else."""
    for folder in ("results", "logs", "locks", *more):
        (work / folder).mkdir(parents=True, exist_ok=True)
    told = work / "asked.json"
    if told.exists() and json.loads(told.read_text(encoding="utf-8")) != asked:
        sys.exit(f"{work} holds runs with other settings, see {told}; give this one another --work")
    atomic_write_text(told, json.dumps(asked))


def take_over(page: Path, work: Path, keys: Sequence[str]) -> None:
    """Store the rows of another machine's page as JSON, those of the same settings; the base may lie elsewhere there.

    Args:
        keys: of a row that name its run.

    Raises:
        SystemExit: the file has no rows.
    """
    asked = json.loads((work / "asked.json").read_text(encoding="utf-8"))
    try:
        rows = json.loads(page.read_text(encoding="utf-8"))
        names = [name_of([row[key] for key in keys]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{page} is no page of `table` as JSON: {error}") from error
    taken = 0
    for name, row in zip(names, rows, strict=True):
        mine = {**row, "base": asked["base"]} if Path(row["base"]).name == Path(asked["base"]).name else row
        path = work / "results" / f"{Path(name).name}.json"
        if not path.exists() and all(mine.get(key) == value for key, value in asked.items()):
            atomic_write_text(path, json.dumps(mine))
            taken += 1
    print(f"{taken} runs are taken over from {page}", flush=True)


def made(place: Path, work: Path, job: Sequence[object], told: Callable[[Mapping[str, Any]], str], *more: str) -> bool:
    """Make a run that is missing by `place one …`, unless another process is at it; False where it failed.

    Args:
        place: the benchmark's folder.
        told: result → the line about it.
        more: further arguments.
    """
    name = name_of(job)
    result, log = work / "results" / f"{name}.json", work / "logs" / f"{name}.log"
    try:
        with FileLock(work / "locks" / f"{name}.lock", timeout=0):
            if result.exists():
                return True
            words = [sys.executable, "-u", str(place), "one", "--work", str(work), *map(str, job), *more]
            with log.open("a") as lines:
                code = subprocess.run(words, stdout=lines, stderr=lines, env=os.environ, check=False).returncode
    except Timeout:
        return True
    if code:
        print(f"{name}: failed, see {log}", file=sys.stderr, flush=True)
        return False
    print(f"{name}: {told(json.loads(result.read_text(encoding='utf-8')))}", flush=True)
    return True


def results(work: Path) -> list[dict[str, Any]]:
    """What was measured; exits where nothing was."""
    paths = sorted((work / "results").glob("*.json"))
    if not paths:
        sys.exit(f"{work}: nothing was measured; `run` first")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def chosen(text: str, known: Iterable[str]) -> list[str]:
    """Names with commas between, each of them known; all for none."""
    names = [name.strip() for name in text.split(",") if name.strip()] or list(known)
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"no {', '.join(unknown)}; there are: {', '.join(known)}")
    return names
