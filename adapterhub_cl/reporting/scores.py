"""Which recorded score stands for a version on a task, and the accuracy matrix that these make. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.registry import StoredEvaluation
from adapterhub_cl.reporting.facts import Score
from adapterhub_cl.types import DERIVED, AdapterRecord, Task


class Recorded:
    """The recorded scores of a hub.

    Args:
        records: all its versions.
        evaluations: all its evaluations, in the order in which they were recorded.
    """

    def __init__(self, records: Sequence[AdapterRecord], evaluations: Sequence[StoredEvaluation]) -> None:
        self._own: dict[str, list[AdapterRecord]] = {}
        self._records = {record.ref: record for record in records}
        for record in sorted(records, key=lambda r: r.created_at, reverse=True):
            if record.task and record.status == "active":
                self._own.setdefault(record.task, []).append(record)
        self._stored: dict[tuple[str, str, str], list[StoredEvaluation]] = {}
        for stored in evaluations:
            one = stored.evaluation
            self._stored.setdefault((stored.ref, one.task, one.metric), []).append(stored)

    def score(self, ref: str, task: str, metric: str) -> Score | None:
        """A version's score on a task: the one that was measured when it was made, else the latest that was measured
        on the task's own held-out data or replay samples. None where there is neither.

        Scores on any other data (`eval --data`) are not comparable, and never taken.
        """
        record = self._records.get(ref)
        if record is None:
            return None
        for row in record.manifest.get("evaluations", ()):
            if (row["task"], row["metric"]) == (task, metric):
                return _score(metric, row["value"], row["n"], row.get("details") or {})
        found = self._stored.get((ref, task, metric), ())
        for data, sha256 in self._sources(task):
            for stored in reversed(found):
                one = stored.evaluation
                if one.data == data and _source(record, stored) == sha256:
                    return _score(metric, one.value, one.n, one.details)
        return None

    def _sources(self, task: str) -> list[tuple[str, str]]:
        """What a task is measured on, the best first: data and its hash (empty for replay samples)."""
        held, samples = [], []
        for record in self._own.get(task, ()):
            eval_data = (record.manifest.get("training") or {}).get("eval") or {}
            if eval_data.get("source") and eval_data.get("sha256"):
                held.append((str(eval_data["source"]), str(eval_data["sha256"])))
            samples.append((f"replay samples of {record.ref}", ""))
        return list(dict.fromkeys([*held, *samples]))


def _source(record: AdapterRecord, stored: StoredEvaluation) -> str | None:
    """The hash of what a score was measured on; None where it is not known."""
    held = (record.manifest.get("training") or {}).get("eval") or {}
    known = held.get("sha256") if held.get("source") == stored.evaluation.data else None
    found = stored.evaluation.details.get("sha256", known)
    return None if found is None else str(found)


def _score(metric: str, value: float, n: int, details: Mapping[str, Any]) -> Score:
    ends = details.get("interval")
    interval = (float(ends[0]), float(ends[1])) if ends and metric != "perplexity" else None
    return Score(as_share(metric, float(value)), metric, int(n), interval)


def learned(records: Sequence[AdapterRecord]) -> list[AdapterRecord]:
    """For each task the newest active version that was trained for it, in the order in which they were made: the
    stages of the hub's accuracy matrix. A merged or pruned version is no step of the hub's learning."""
    newest: dict[str, AdapterRecord] = {}
    for record in sorted(records, key=lambda r: r.created_at):
        taught = record.kind not in DERIVED and record.status == "active"
        if taught and record.task and record.manifest.get("task_spec"):
            newest.pop(record.task, None)
            newest[record.task] = record
    return list(newest.values())


def matrix(stages: Sequence[AdapterRecord], recorded: Recorded, name: str = "") -> AccuracyMatrix | None:
    """The accuracy matrix of these versions, from what is recorded: as `eval --matrix` gives it, but for cells that it
    would have to measure first, which stay empty. None without stages.

    Row i has the score of what serves each task after version i was made: its own score for its task and those that
    it took over, what stood before for all others.
    """
    if not stages:
        return None
    tasks = [record.task for record in stages]
    metrics = [Task.from_json(record.manifest["task_spec"]).metric for record in stages]
    rows: list[tuple[float | None, ...]] = []
    for i, record in enumerate(stages):
        row: list[float | None] = list(rows[-1]) if rows else [None] * len(tasks)
        row[i] = None
        answers = {record.task, *record.manifest.get("takes_over", ())}
        for j in (j for j, task in enumerate(tasks[: i + 1]) if task in answers):
            found = recorded.score(record.ref, tasks[j], metrics[j])
            row[j] = None if found is None else found.value
        if i + 1 < len(tasks):
            row[i + 1] = _told(stages[i + 1], "ahead")
        rows.append(tuple(row))
    base = tuple(_told(record, "base") for record in stages)
    seconds = sum(float((r.manifest.get("training") or {}).get("seconds") or 0.0) for r in stages)
    return AccuracyMatrix(
        tuple(tasks), tuple(rows), metrics=tuple(metrics), base=base, name=name, seconds=round(seconds, 1)
    )


def _told(record: AdapterRecord, key: str) -> float | None:
    """What a stage of a stream says was measured before it: `base` or `ahead`."""
    found = (record.manifest.get("stream") or {}).get(key)
    return None if found is None else float(found)
