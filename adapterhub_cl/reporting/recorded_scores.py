"""Which recorded score a report shows for a version and a task, and the accuracy matrix of them. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.evaluation.stages import matrix_of, metric_of, source_of, written
from adapterhub_cl.registry import StoredEvaluation
from adapterhub_cl.registry.shapes import sound_details
from adapterhub_cl.reporting.facts import Score
from adapterhub_cl.types import AdapterRecord


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
        """A version's score on a task: the one measured when it was made, otherwise the latest one measured on the
        task's own held-out data or replay samples. None if there is neither.

        Scores on any other data (`eval --data`) are not comparable and never used.
        """
        record = self._records.get(ref)
        if record is None:
            return None
        if (row := written(record, task, metric)) is not None:
            return _score(metric, row["value"], row["n"], row.get("details") or {})
        found = self._stored.get((ref, task, metric), ())
        for data, sha256 in self._sources(task):
            for stored in reversed(found):
                one = stored.evaluation
                if one.data == data and source_of(record, one) == sha256:
                    return _score(metric, one.value, one.n, one.details)
        return None

    def _sources(self, task: str) -> list[tuple[str, str]]:
        """What a task is measured on, the best first: data and its hash (empty for replay samples)."""
        held, samples = [], []
        for record in self._own.get(task, ()):
            eval_data = record.training.get("eval") or {}
            if eval_data.get("source") and eval_data.get("sha256"):
                held.append((str(eval_data["source"]), str(eval_data["sha256"])))
            samples.append((f"replay samples of {record.ref}", ""))
        return list(dict.fromkeys([*held, *samples]))


def _score(metric: str, value: float, n: int, details: Mapping[str, Any]) -> Score:
    ends = sound_details(details).get("interval")
    interval = (float(ends[0]), float(ends[1])) if ends and metric != "perplexity" else None
    return Score(as_share(metric, float(value)), metric, int(n), interval)


def matrix(stages: Sequence[AdapterRecord], recorded: Recorded, name: str = "") -> AccuracyMatrix | None:
    """The accuracy matrix of these versions, from recorded scores: as in `eval --matrix`, except that cells that would
    have to be measured are empty. None without stages."""

    def score(record: AdapterRecord, owner: AdapterRecord) -> float | None:
        found = recorded.score(record.ref, owner.task, metric_of(owner))
        return None if found is None else found.value

    return matrix_of(stages, name, score) if stages else None
