"""A run's row in results/: what was asked, what was measured, and whether it can be believed."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs import TOLD, Job, budget_of
from machine import machine, versions
from orders import BUDGETS, BY_NAME, ORDERS, read_json

from adapterhub_cl.registry.files import atomic_write_text

Run = Mapping[str, Any]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "adapterhub-cl")
# Kinds of the fields that every row has.
FIELDS = {"base": str, "quantization": str, "smoke": bool, "options": dict, "rate": float | int, "budget": dict}
FIELDS |= {"seed": int, "trial": int | None, "peak_mb": int | None}
WAYS = ("routing", "family")  # how often the router is right, and right but for tasks with the same labels


def asked_of(job: Job, work: Path | None = None) -> dict[str, Any]:
    """What a run's row says of what was asked.

    Args:
        work: where asked.json lies; default: in the run's own folder.
    """
    common = {key: value for key, value in read_json((work or job.work) / "asked.json").items() if key != "budgets"}
    row = {"method": job.method.name, "order": job.order, "seed": job.seed, "trial": job.trial, **common}
    return row | {"options": dict(job.method.options), "rate": job.method.rate, "budget": asdict(BUDGETS[job.budget])}


def keep(job: Job, found: Run) -> None:
    """Store what a run measured here."""
    packages = versions(*PACKAGES)
    place = f"{machine()}. Python {platform.python_version()}, {packages}"
    atomic_write_text(job.result, json.dumps({**asked_of(job), **found, "machine": place}, indent=1))


def stale(job: Job) -> list[str]:
    """What a stored row was asked otherwise than the job asks; nothing where it answers it.

    Raises:
        SystemExit: it is broken.
    """
    row = checked(job.result)
    return [name for name, value in asked_of(job).items() if row[name] != value]


def checked(path: Path) -> Run:
    """A stored row.

    Raises:
        SystemExit: it is broken, or has not what the tables need.
    """
    row = read_json(path, "delete it, and run what it held again")
    if not sound(row) or _name(row) != path.stem:
        raise SystemExit(f"{path} is no result of this benchmark; delete it, and run what it held again")
    return dict(row)


def take_over(page: Path, work: Path) -> None:
    """Store the rows of another machine's cl15.json, those of the same base and settings.

    Raises:
        SystemExit: the file has no such rows, or one of them cannot be believed.
    """
    known = read_json(page, "--known takes the cl15.json that `table` wrote")
    if not isinstance(known, dict) or not isinstance(known.get("runs"), list):
        raise SystemExit(f"{page} has no runs: --known takes the cl15.json that `table` wrote")
    rows = [*known["runs"], *known.get("tuning", ())]
    if not all(map(sound, rows)) or len({_name(row) for row in rows}) < len(rows):
        raise SystemExit(f"{page} has runs that are broken or stand there twice")
    taken, other = 0, 0
    for row in rows:
        job = _job(row, work)
        if job.done:
            continue
        mine = asked_of(job, work)
        near = Path(row["base"]).parts[-2:] == Path(mine["base"]).parts[-2:]  # it may lie in another folder there
        if near and all(row[name] == value for name, value in mine.items() if name != "base"):
            job.result.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(job.result, json.dumps({**row, "base": mine["base"]}, indent=1))
            taken += 1
        else:
            other += 1
    left = f"; {other} of another base or other settings are not" if other else ""
    print(f"{taken} runs are taken over from {page}{left}", flush=True)


def sound(row: Any) -> bool:
    """Whether a row has all that the tables need, and figures that can be."""
    try:
        method, tasks = BY_NAME[row["method"]], ORDERS[row["order"]]
        kinds = all(isinstance(row[name], kind) for name, kind in FIELDS.items())
        shares = [row["average_accuracy"]]
        if "matrix" in row:
            lengths = [sum(cell is not None for cell in cells) for cells in row["matrix"]]
            right = lengths == [*range(1, len(tasks) + 1)] and all(len(cells) == len(tasks) for cells in row["matrix"])
            shares += [cell for k, cells in enumerate(row["matrix"], 1) for cell in cells[:k]]
        else:
            right = len(row["scores"]) == len(tasks)
            shares += row["scores"]
        shares += [row["given_accuracy"]] if method.name in TOLD else []
        if method.routed:
            shares += [row["bare_accuracy"], *(row[kind][form] for kind in WAYS for form in ("whole", "bare"))]
        times = [
            value for name in ("seconds", "wall_seconds", "bwt", "bare_bwt") if (value := row.get(name)) is not None
        ]
        return (
            kinds
            and right
            and tuple(row["tasks"]) == tasks
            and (row["trial"] is None or 0 <= row["trial"] < max(1, len(method.trials)))
            and all(0 <= share <= 1 for share in shares)
            and all(math.isfinite(value) for value in times)
        )
    except (KeyError, TypeError, IndexError):
        return False


def alike(rows: Iterable[Run], names: Iterable[str]) -> bool:
    """Whether rows were asked the same."""
    return len({json.dumps([row[name] for name in names], sort_keys=True) for row in rows}) < 2


def _job(row: Run, work: Path) -> Job:
    tuned = row["order"] == "tune"
    budget = "smoke" if row["smoke"] else "tune" if tuned else budget_of(row["order"])
    method = BY_NAME[row["method"]].tried(row["trial"])
    return Job(work / "tune" if tuned else work, row["order"], method, row["seed"], budget, row["trial"])


def _name(row: Run) -> str:
    return _job(row, Path()).name
