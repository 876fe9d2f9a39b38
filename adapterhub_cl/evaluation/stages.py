"""The accuracy matrix of versions in the order in which they were made, from recorded scores. Does not import torch:
the report uses it too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.types import DERIVED, AdapterRecord, Evaluation, Task

Score = Callable[[AdapterRecord, AdapterRecord], float | None]


def learned(records: Iterable[AdapterRecord]) -> list[AdapterRecord]:
    """For each task the newest active version that was trained for it, in the order in which they were made: the
    stages of a hub's accuracy matrix. A merged or pruned version is not a step of the hub's learning."""
    newest: dict[str, AdapterRecord] = {}
    for record in sorted(records, key=lambda r: r.created_at):
        taught = record.kind not in DERIVED and record.status == "active"
        if taught and record.task and record.manifest.get("task_spec"):
            newest.pop(record.task, None)
            newest[record.task] = record
    return list(newest.values())


def matrix_of(stages: Sequence[AdapterRecord], name: str = "", score: Score | None = None) -> AccuracyMatrix:
    """The accuracy matrix of versions in the order in which they were made.

    Row i has the scores after version i was made: the version's own score for its task and those that it took over,
    the earlier scores for all others; None for what was not measured.

    Args:
        score: gives a version's score on another one's task; by default the one in the first's manifest.
    """
    tasks = [record.task for record in stages]
    rows: list[tuple[float | None, ...]] = []
    for i, record in enumerate(stages):
        row: list[float | None] = list(rows[-1]) if rows else [None] * len(tasks)
        row[i] = None
        for j, task in enumerate(tasks[: i + 1]):
            if task == record.task or task in record.manifest.get("takes_over", ()):
                row[j] = (score or written_score)(record, stages[j])
        if i + 1 < len(tasks):
            row[i + 1] = _told(stages[i + 1], "ahead")
        rows.append(tuple(row))
    base = tuple(_told(record, "base") for record in stages)
    seconds = sum(float(record.training.get("seconds") or 0.0) for record in stages)
    metrics = tuple(metric_of(record) for record in stages)
    return AccuracyMatrix(tuple(tasks), tuple(rows), metrics=metrics, base=base, name=name, seconds=round(seconds, 1))


def metric_of(record: AdapterRecord) -> str:
    """The main metric of a version's task."""
    return Task.from_json(record.manifest["task_spec"]).metric


def written(record: AdapterRecord, task: str, metric: str) -> Mapping[str, Any] | None:
    """The row of a version's manifest with its score on a task; None if it was not measured."""
    rows: Iterable[Mapping[str, Any]] = record.manifest.get("evaluations", ())
    return next((row for row in rows if (row["task"], row["metric"]) == (task, metric)), None)


def written_score(record: AdapterRecord, owner: AdapterRecord) -> float | None:
    """The score in a version's manifest on the task of another one; None if it was not measured."""
    metric = metric_of(owner)
    row = written(record, owner.task, metric)
    return None if row is None else as_share(metric, float(row["value"]))


def source_of(record: AdapterRecord, found: Evaluation) -> str | None:
    """The hash of the data that a version's recorded score was measured on; None if it is unknown."""
    held = record.training.get("eval") or {}
    known = held.get("sha256") if held.get("source") == found.data else None
    source = found.details.get("sha256", known)
    return None if source is None else str(source)


def _told(record: AdapterRecord, key: str) -> float | None:
    """A score that a stage of a stream recorded before its training: `base` or `ahead`."""
    found = (record.manifest.get("stream") or {}).get(key)
    return None if found is None else float(found)
