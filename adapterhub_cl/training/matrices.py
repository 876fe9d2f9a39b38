"""Accuracy matrices from versions: of a stream's stages, or of everything that a hub learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import UsageError
from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.registry import Registry
from adapterhub_cl.training.probes import probe_of, recorded_score
from adapterhub_cl.training.progress import Reporter
from adapterhub_cl.types import DERIVED, AdapterRecord, Task


def hub_matrix(registry: Registry, load: Callable[[], LoadedBase], reporter: Reporter) -> AccuracyMatrix:
    """The accuracy matrix of a hub: its tasks in the order in which they were last learned. Scores that no manifest
    has are measured and recorded.

    Raises:
        UsageError: the hub has learned nothing yet.
    """
    newest: dict[str, AdapterRecord] = {}
    versions = registry.adapters(all_versions=True, include_rejected=False)
    for record in sorted(versions, key=lambda r: r.created_at):
        taught = record.kind not in DERIVED  # a merged or pruned version is no step of the hub's learning
        if record.task and taught and record.status == "active" and record.manifest.get("task_spec"):
            newest.pop(record.task, None)
            newest[record.task] = record
    if not newest:
        raise UsageError("this hub has learned no task yet", "cl-adapter add-task NAME DATA")

    def score(record: AdapterRecord, owner: AdapterRecord) -> float | None:
        found = written_score(record, owner)
        probe = probe_of(registry, owner.task) if found is None else None
        if probe is None:
            return found
        measured = recorded_score(registry, load(), record, probe, reporter)
        return as_share(measured.metric, measured.value)

    return matrix_of(list(newest.values()), "hub", score)


def matrix_of(
    stages: Sequence[AdapterRecord],
    name: str = "",
    score: Callable[[AdapterRecord, AdapterRecord], float | None] | None = None,
) -> AccuracyMatrix:
    """The accuracy matrix of versions in the order in which they were made, from their manifests.

    Row i has the score of what serves each task after version i was made: its own score for its task and those that
    it took over, what stood before for all others; None for what was not measured.

    Args:
        score: gives a version's score on another one's task; default: the one in the first's manifest.
    """
    tasks = [record.task for record in stages]
    rows: list[tuple[float | None, ...]] = []
    for i, record in enumerate(stages):
        row: list[float | None] = list(rows[-1]) if rows else [None] * len(tasks)
        if i:
            row[i] = None
        for j, task in enumerate(tasks[: i + 1]):
            if task == record.task or task in record.manifest.get("takes_over", ()):
                row[j] = (score or written_score)(record, stages[j])
        if i + 1 < len(tasks):
            row[i + 1] = (stages[i + 1].manifest.get("stream") or {}).get("ahead")
        rows.append(tuple(row))
    base = tuple((record.manifest.get("stream") or {}).get("base") for record in stages)
    seconds = sum(float(record.manifest.get("training", {}).get("seconds") or 0.0) for record in stages)
    metrics = tuple(_spec(record).metric for record in stages)
    return AccuracyMatrix(tuple(tasks), tuple(rows), metrics=metrics, base=base, name=name, seconds=round(seconds, 1))


def _spec(record: AdapterRecord) -> Task:
    return Task.from_json(record.manifest["task_spec"])


def written_score(record: AdapterRecord, owner: AdapterRecord) -> float | None:
    """What a version's manifest says that it scored on the task of another one; None where it was not measured."""
    metric = _spec(owner).metric
    for row in record.manifest.get("evaluations", ()):
        if (row["task"], row["metric"]) == (owner.task, metric):
            return as_share(metric, float(row["value"]))
    return None
