"""Reads a hub's records for a report: the index, the manifests, recipes and fitted routers. Does not load torch, and
measures nothing.

Parts that are damaged or have an unknown format are skipped with a note; an unreadable index is an error as
everywhere.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from adapterhub_cl.errors import AdapterHubError, UsageError
from adapterhub_cl.evaluation.base_effect import BaseEffect
from adapterhub_cl.evaluation.gate import REFUSED, Effect, general_of, refusal_of
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.evaluation.stages import learned
from adapterhub_cl.registry import Event, Registry, files
from adapterhub_cl.registry.samples import ROUTERS
from adapterhub_cl.registry.shapes import wrong_details
from adapterhub_cl.reporting import recorded_scores
from adapterhub_cl.reporting.facts import (
    DerivedFacts,
    Facts,
    GateFacts,
    RouterFacts,
    StartFacts,
    TaskFacts,
    VersionFacts,
)
from adapterhub_cl.reporting.searches import all_searches
from adapterhub_cl.samples.store import Kept, Samples
from adapterhub_cl.types import DERIVED, AdapterRecord, Task

T = TypeVar("T")
P = ParamSpec("P")
MOVES = ("promote", "rollback", "alias", "drop-alias", "serve", "status", "delete", "forget-task", "drop-task")
MOST_MOVES = 40
RECIPE = "recipe.json"
STREAMS = "streams"  # hubs in which strategies were compared, see learning.comparing
_UNFIT = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError),
    AdapterHubError,
)


class _Notes(list[str]):
    """What was skipped."""

    def attempt(self, what: str, otherwise: T, read: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Read something; if it does not have the expected structure, add a note and return `otherwise`."""
        try:
            return read(*args, **named)
        except _UNFIT as error:
            self.append(f"{what} was skipped: {_reason(error)}")
        except OSError as error:
            self.append(f"{what} was skipped: {(error.strerror or 'it cannot be read').lower()}")
        return otherwise


def gather(registry: Registry, tool: str = "") -> Facts:
    """The content of a report about a hub.

    Args:
        tool: the program that makes the report, with its version.

    Raises:
        IntegrityError, StorageError: the index cannot be read.
    """
    notes = _Notes()
    records = sorted(registry.adapters(all_versions=True), key=lambda r: (r.created_at, r.name, r.version))
    recorded = recorded_scores.Recorded(records, registry.evaluations())
    serving, tasks, usage = registry.serving(), registry.tasks(), registry.usage()
    requests: Counter[str] = Counter()
    for row in usage:
        requests[row.ref] += row.requests
    specs = {task.name: task for task in tasks}
    served: dict[str, list[str]] = {}
    for task, ref in serving.items():
        served.setdefault(ref, []).append(task)
    versions = [
        found
        for step, record in enumerate(records, 1)
        if (found := notes.attempt(record.ref, None, _version, record, step, recorded, specs, served))
    ]
    for record in records:
        notes.attempt(f"a score of {record.ref}", None, _note_details, record, notes)
    best: dict[str, tuple[str, float]] = {}
    for version in versions:
        for task, score in version.scores.items() if version.answers else ():
            if task not in best or score.value > best[task][1]:
                best[task] = (version.ref, score.value)
    stages = notes.attempt("the accuracy matrix", list[AdapterRecord](), learned, records)
    matrix = notes.attempt("the accuracy matrix", None, recorded_scores.matrix, stages, recorded, "hub")
    samples, events = Samples(registry), registry.events()
    made = _each(notes, "the gate's decision on", reversed(records), _gate)
    return Facts(
        name=registry.path.resolve().name or "hub",
        base=registry.base,
        hub_made_at=registry.hub_file.created_at,
        made_at=files.now(),
        tool=tool,
        bytes=sum(record.bytes for record in records),
        tasks=tuple(
            told
            for task in tasks
            if (told := notes.attempt(f"the task {task.name}", None, _task, task, recorded, best, serving))
        ),
        versions=tuple(replace(v, requests=requests[v.ref]) for v in versions),
        matrix=matrix,
        stages=tuple(record.ref for record in stages),
        gates=tuple(sorted([*made, *_promotions(events, notes)], key=lambda gate: gate.at, reverse=True)),
        base_effects=tuple(_each(notes, "the loss on general text of", reversed(records), _base_effect)),
        derived=tuple(_each(notes, "the recipe of", reversed(records), lambda r: _derived(r, notes))),
        edges=tuple(registry.lineage()),
        starts=tuple(_each(notes, "the start of", reversed(records), _start)),
        tuned=all_searches(registry, notes.attempt),
        router=_router(registry.path / ROUTERS, list(serving), notes),
        usage=tuple(usage),
        kept=tuple(notes.attempt("the replay samples", list[Kept](), samples.rows)),
        budget=notes.attempt("the replay budget", None, samples.budget),
        streams=tuple(_streams(registry.path / STREAMS, notes)),
        moves=tuple(_moves(events)),
        max_forgetting=notes.attempt("max_forgetting in hub.toml", None, _limit, registry),
        notes=tuple(dict.fromkeys(map(_printable, notes))),
    )


def _version(
    record: AdapterRecord,
    step: int,
    recorded: recorded_scores.Recorded,
    specs: Mapping[str, Task],
    served: Mapping[str, Sequence[str]],
) -> VersionFacts:
    manifest = record.manifest
    known: dict[str, Any] = {}
    for task in record.tasks:
        spec = specs.get(task)
        found = recorded.score(record.ref, task, spec.metric) if spec is not None else None
        if found is not None:
            known[task] = found
    return VersionFacts(
        ref=record.ref,
        kind=record.kind,
        tasks=tuple(record.tasks),
        rank=record.rank,
        bytes=record.bytes,
        created_at=record.created_at,
        status=record.status,
        step=step,
        aliases=record.aliases,
        strategy=str(manifest.get("strategy") or ""),
        serves=tuple(served.get(record.ref, ())),
        scores=known,
        retention=_retention(record),
        answers=record.kind not in DERIVED and record.status == "active",
    )


def _note_details(record: AdapterRecord, notes: _Notes) -> None:
    """Add a note about invalid details of a version's scores, which the report leaves out."""
    for row in record.manifest.get("evaluations") or ():
        if wrong := wrong_details(row.get("details") or {}):
            what = f"{', '.join(wrong)} of the {row['metric']} of {record.ref} on {row['task']}"
            notes.append(f"{what} was skipped: it is invalid")


def _retention(record: AdapterRecord) -> dict[str, float]:
    known = {str(task): float(share) for task, share in record.retention.items()}
    return {task: share for task, share in known.items() if math.isfinite(share)}


def _task(
    task: Task, recorded: recorded_scores.Recorded, best: Mapping[str, tuple[str, float]], serving: Mapping[str, str]
) -> TaskFacts:
    served_by = serving.get(task.name, "")
    return TaskFacts(
        name=task.name,
        kind=task.kind,
        labels=tuple(str(label) for label in task.labels),
        metric=task.metric,
        served_by=served_by,
        now=recorded.score(served_by, task.name, task.metric),
        best=best.get(task.name),
    )


def _each(
    notes: _Notes, what: str, records: Iterable[AdapterRecord], read: Callable[[AdapterRecord], T | None]
) -> list[T]:
    """The results of reading each version, without those that have nothing to read."""
    found = (notes.attempt(f"{what} {record.ref}", None, read, record) for record in records)
    return [one for one in found if one is not None]


def _gate(record: AdapterRecord) -> GateFacts | None:
    told = record.manifest.get("gate")
    if not told or not told["effects"]:
        return None
    of_retention = "min_retention" in told
    limit = told["min_retention"] if of_retention else told["limit"]
    effects = _shares(Effect.from_json(row) for row in told["effects"])
    return GateFacts(
        ref=record.ref,
        at=record.created_at,
        limit=None if limit is None else float(limit),
        of_retention=of_retention,
        passed=bool(told["passed"]),
        status=record.status,
        effects=effects,
    )


def _base_effect(record: AdapterRecord) -> tuple[str, BaseEffect] | None:
    effect = general_of(record.manifest.get("gate") or {})
    return None if effect is None else (record.ref, effect)


def _start(record: AdapterRecord) -> StartFacts | None:
    told = record.manifest.get("start")
    if not told:
        return None
    numbers = {name: float(told[name]) for name in ("fresh", "kin")}
    counts = {name: int(told[name]) for name in ("rows", "steps")}
    parents, best = _mixture(told["from"]), _mixture(told["best"])
    return StartFacts(record.ref, parents, best, **numbers, **counts, tried=len(told["tried"]))  # type: ignore[arg-type]


def _mixture(parents: Mapping[str, float]) -> str:
    return " + ".join(f"{float(weight):.2g} · {ref}" if weight != 1 else str(ref) for ref, weight in parents.items())


def _promotions(events: Sequence[Event], notes: _Notes) -> list[GateFacts]:
    """The promotions that the gate refused, newest first."""
    found, passed = [], set[str]()
    for event in events:
        if event.verb == "promote":
            passed.add(event.ref)
        elif event.verb == REFUSED and event.detail:  # forget-task empties the details
            status = "active" if event.ref in passed else "rejected"
            one = notes.attempt(f"the refused promotion of {event.ref}", None, _promotion, event, status)
            found += [] if one is None else [one]
    return found


def _promotion(event: Event, status: str) -> GateFacts:
    decision = refusal_of(event.detail)
    effects = _shares(decision.effects)
    return GateFacts(event.ref, event.at, decision.limit, False, False, status, effects, promotion=True)


def _shares(effects: Iterable[Effect]) -> tuple[Effect, ...]:
    found = tuple(effects)
    for effect in found:
        assert effect.interval  # shares, on at least one example; otherwise this raises
    return found


def _derived(record: AdapterRecord, notes: _Notes) -> DerivedFacts | None:
    if record.kind not in DERIVED:
        return None
    manifest = record.manifest
    recipe = manifest.get("recipe") or {}
    error = manifest.get("truncation_error")
    layers = notes.attempt(f"{RECIPE} of {record.ref}", dict[str, float](), _layers, record.path / RECIPE)
    return DerivedFacts(
        ref=record.ref,
        kind=record.kind,
        how=_how(recipe, manifest.get("storage") or {}),
        parents=tuple(str(edge["parent"]) for edge in manifest.get("lineage", ())),
        rank=record.rank,
        bytes=record.bytes,
        status=record.status,
        error=None if error is None or not math.isfinite(error) else float(error),
        layers=layers,
        retention=_retention(record),
    )


def _layers(path: Path) -> dict[str, float]:
    """Layer → truncation error; empty if the recipe has none."""
    report = json.loads(path.read_text(encoding="utf-8"))["report"]
    rows = report.get("layers") or ()
    known = {str(row["name"]): float(row["truncation_error"]) for row in rows if row["truncation_error"] is not None}
    return {name: error for name, error in known.items() if math.isfinite(error)}


def _how(recipe: Mapping[str, Any], storage: Mapping[str, Any]) -> str:
    """`linear, rank 4`; `energy 0.99, int8`; `3 epochs`."""
    parts: list[str] = []
    if recipe.get("method"):
        parts.append(str(recipe["method"]))
    if recipe.get("energy") is not None:
        parts.append(f"energy {float(recipe['energy']):g}")
    if recipe.get("rank") is not None and recipe.get("verb") != "distill":
        parts.append(f"rank {recipe['rank']}")
    if recipe.get("search"):
        parts.append("ranks searched")
    if recipe.get("magnitude") is not None:
        parts.append(f"magnitude {float(recipe['magnitude']):g}")
    if recipe.get("verb") == "distill" and recipe.get("start"):
        parts.append(f"from the {recipe['start']} merge")
    if storage.get("format") and storage.get("format") != storage.get("format_before"):
        parts.append(f"stored as {storage['format']}")
    return ", ".join(parts)


def _router(folder: Path, tasks: Sequence[str], notes: _Notes) -> RouterFacts | None:
    """The decisions of the newest readable fitted router for its held-out samples."""
    newest: tuple[str, RouterFacts] | None = None
    for path in sorted(folder.glob("*/router.json")) if folder.is_dir() and not folder.is_symlink() else ():
        where = f"{ROUTERS}/{path.parent.name}/{path.name}"
        found = notes.attempt(where, None, _read_router, path, tasks)
        if found is not None and found.total and (newest is None or found.fitted_at > newest[0]):
            newest = (found.fitted_at, found)
    return newest[1] if newest else None


def _read_router(path: Path, tasks: Sequence[str]) -> RouterFacts:
    if path.is_symlink() or path.parent.is_symlink():
        raise ValueError("it is a link")
    about = json.loads(path.read_text(encoding="utf-8"))
    rows: dict[str, dict[str, int]] = {}
    for task, entry in about["tasks"].items():
        row = {str(chosen): int(n) for chosen, n in entry["held_out"].items()}
        if min(row.values(), default=0) < 0:
            raise ValueError("a count below 0")
        rows[str(task)] = row
    unknown = tuple(task for task in tasks if task not in rows)
    fitted_at = str(about.get("written_at") or "")
    return RouterFacts(str(about["router"]), fitted_at, rows, unknown)


def _streams(folder: Path, notes: _Notes) -> list[tuple[str, AccuracyMatrix]]:
    """The matrices of the hubs in which `stream` compared strategies."""
    found = []
    for place in sorted(folder.glob("*/*/hub.toml")) if folder.is_dir() and not folder.is_symlink() else ():
        what = f"{STREAMS}/{place.parent.parent.name}/{place.parent.name}"
        one = notes.attempt(what, None, _stream, place.parent)
        if one is not None:
            found.append((place.parent.parent.name, one))
    return found


def _stream(place: Path) -> AccuracyMatrix | None:
    registry = Registry.open(place)
    records = [r for r in registry.adapters(all_versions=True, include_rejected=False) if r.manifest.get("stream")]
    stages = sorted(records, key=lambda r: int(r.manifest["stream"]["stage"]))
    if not stages:
        return None
    told = stages[0].manifest
    found = recorded_scores.matrix(stages, recorded_scores.Recorded(stages, registry.evaluations()))
    assert found is not None
    seed = (stages[0].training.get("settings") or {}).get("seed")
    return AccuracyMatrix.from_json({**found.to_json(), "name": str(told["stream"]["strategy"]), "seed": seed})


def _moves(events: Sequence[Event]) -> list[Event]:
    """Manual changes of which version serves, newest first."""
    return [event for event in events if event.verb in MOVES][:MOST_MOVES]


def _limit(registry: Registry) -> float | None:
    with suppress(KeyError):
        limit = float(registry.hub_file.defaults["max_forgetting"])
        if not 0 <= limit <= 1:
            raise UsageError(f"{limit:g} is not a share")
        return limit
    return None


def _printable(text: str) -> str:
    """A note that is safe to print: it may quote damaged content."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "it is not valid JSON"
    if isinstance(error, UnicodeDecodeError):
        return "it is not text"
    if isinstance(error, AdapterHubError):
        return error.message
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return f"it has an unexpected structure ({str(error) or type(error).__name__})"
