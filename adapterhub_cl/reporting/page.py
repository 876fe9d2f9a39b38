"""The report: facts to one self-contained HTML page, and the page to a file. It loads nothing and runs no script."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import StorageError, UsageError
from adapterhub_cl.registry import Event, Registry, check_local, files
from adapterhub_cl.registry.names import refuse_inside
from adapterhub_cl.reporting import drawing, views
from adapterhub_cl.reporting.facts import Facts
from adapterhub_cl.reporting.gathering import MOST_MOVES, gather
from adapterhub_cl.reporting.templating import filled

TEMPLATE = "page.html.j2"
GENERATOR = "AdapterHub-CL report"
FIGURES = ("average_accuracy", "bwt", "forgetting", "fwt_gem", "any_time_average")
_HEAD = 2048  # the first bytes of a report, which identify it as one
_LONGEST = 300  # characters of a text from outside


def render(facts: Facts, title: str | None = None) -> str:
    """The page. All text from the hub is escaped; control characters are replaced.

    Args:
        title: by default the hub's name.
    """
    top_error = max((error for d in facts.derived for error in d.layers.values()), default=0.0)
    filters: dict[str, Callable[..., Any]] = {
        "keeping": lambda rows: [row for row in rows if row.samples],
        "detail": _detail,
        "layers": partial(views.layer_spark, top=top_error),
    }
    return filled(TEMPLATE, filters, facts=facts, **_context(facts, title))


def _context(facts: Facts, title: str | None) -> dict[str, Any]:
    matrix, router = facts.matrix, facts.router
    narrow = matrix is not None and len(matrix.tasks) <= views.MOST_COLUMNS
    curves, alone = views.curves(facts)
    kept_samples, kept_bytes = sum(k.samples for k in facts.kept), sum(k.bytes for k in facts.kept)
    used = None
    if facts.budget and facts.budget.amount:
        used = (kept_samples if facts.budget.unit == "samples" else kept_bytes) / facts.budget.amount
    cells = views.matrix_cells(matrix, facts.max_forgetting) if matrix and narrow else []
    return {
        "generator": GENERATOR,
        "title": drawing.cut(" ".join((title or facts.name).split()) or "hub", _LONGEST),
        "names": len({v.ref.partition("@")[0] for v in facts.versions}),
        "summary": views.summary(facts),
        "figures": {name: getattr(matrix, name) if matrix else None for name in FIGURES},
        "cells": cells,
        "scale": views.scale_of(matrix) if matrix else (0.0, 1.0),
        "kept": views.kept(matrix) if matrix else [],
        "unmeasured": sum(c is None for i, row in enumerate(matrix.rows) for c in row[: i + 1]) if matrix else 0,
        "curves": curves,
        "alone": alone,
        "verdicts": views.verdicts(facts),
        "lineage": views.lineage_of(facts),
        "confusion": views.confusion_cells(router) if router and len(router.rows) <= views.MOST_COLUMNS else None,
        "compared": views.compared(facts),
        "kept_samples": kept_samples,
        "kept_bytes": kept_bytes,
        "used": used,
        "top_rank": max((v.rank for v in facts.versions), default=0),
        "top_bytes": max((v.bytes for v in facts.versions), default=0),
        "top_requests": max((row.requests for row in facts.usage), default=0),
        "perplexities": any(task.metric == "perplexity" for task in facts.tasks),
        "most_moves": MOST_MOVES,
    }


def _detail(event: Event) -> str:
    told = " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in event.detail.items()
        if value not in (None, "", [], {})
    )
    return drawing.cut(told, _LONGEST)


def sections(facts: Facts) -> dict[str, int]:
    """The content of the page: section → number of tasks, versions, decisions and so on; 0 if it is empty."""
    curves, _ = views.curves(facts)
    return {
        "tasks": len(facts.tasks),
        "matrix": len(facts.matrix.tasks) if facts.matrix else 0,
        "curves": len(curves),
        "gate": sum(len(gate.effects) for gate in facts.gates),
        "adapters": len(facts.versions),
        "lineage": len(set(facts.edges)),
        "derived": len(facts.derived),
        "routing": len(facts.router.rows) if facts.router else 0,
        "requests": sum(row.requests for row in facts.usage),
        "replay": sum(row.samples for row in facts.kept),
        "streams": len(facts.streams),
        "moves": len(facts.moves),
    }


def check_target(path: Path, hub: Path, overwrite: bool) -> Path:
    """The path with `~` expanded, if a report may be written there. An earlier report is replaced; any other file only
    if `overwrite` is True.

    Raises:
        UsageError: a directory, another file, a missing folder, a broken link, or a place inside the hub.
    """
    path = check_local(path, "a file")
    if path.is_dir():
        raise UsageError(f"{path} is a directory", f"name a file, such as {path / 'report.html'}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a regular file", "name one, such as report.html")
    if not path.parent.is_dir():
        raise UsageError(f"the directory {path.parent} does not exist", "create it first")
    try:
        target = path.resolve()
    except (RuntimeError, OSError) as error:  # RuntimeError: Python before 3.13 raises it for circular links
        raise UsageError(f"{path} is a link that leads back to itself", "name another file") from error
    if not target.parent.is_dir():
        raise UsageError(f"{path} is a link to {target}, whose directory does not exist", "create it, or name another")
    refuse_inside(path, hub, "name a file outside of it: -o ../report.html")
    if (path.exists() or path.is_symlink()) and not overwrite and not is_report(path):
        raise UsageError(f"{path} already exists and is not a report", "name another file, or add --overwrite")
    return path


def is_report(path: Path) -> bool:
    """Whether a file is a page written by `write`."""
    if not path.is_file():
        return False
    with files.storage_errors(path), path.open("rb") as stream:
        return f'<meta name="generator" content="{GENERATOR}">'.encode() in stream.read(_HEAD)


def _tool() -> str:
    try:
        return f"AdapterHub-CL {version('adapterhub-cl')}"
    except PackageNotFoundError:  # run from a folder without installation
        return "AdapterHub-CL"


@dataclass(frozen=True)
class WrittenReport:
    """A report on disk.

    Attributes:
        sections: its content, see `sections`.
        notes: parts of the hub that could not be read and were skipped.
    """

    path: Path
    bytes: int
    sections: dict[str, int]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "bytes": self.bytes, "sections": self.sections, "notes": list(self.notes)}


def page_of(registry: Registry) -> str:
    """The page of a hub as it is now.

    Raises:
        IntegrityError: the index cannot be read.
    """
    return render(gather(registry, _tool()))


def write(registry: Registry, path: Path, *, title: str | None = None, overwrite: bool = False) -> WrittenReport:
    """Collect, render, and write the page atomically; see `AdapterHub.report`.

    Raises:
        UsageError: see `check_target`.
        IntegrityError: the index cannot be read.
        StorageError: the disk cannot be written; an old file is untouched.
    """
    target = check_target(path, registry.path, overwrite)
    facts = gather(registry, _tool())
    data = render(facts, title).encode("utf-8", "replace")
    try:
        files.atomic_write_bytes(target.resolve(), data)  # writes to the target of a link and keeps the link
    except StorageError as error:
        error.message = error.message.replace(str(target.resolve()), str(target))
        full = "cl-adapter gc" in error.hint  # that frees space on the hub's disk, which may be another one
        error.hint = f"{'free some space on its disk, or ' if full else ''}name a file elsewhere: -o FILE"
        raise
    return WrittenReport(target, len(data), sections(facts), facts.notes)
