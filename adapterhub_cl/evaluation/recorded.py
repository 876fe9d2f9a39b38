"""Scores stored versions of a hub and records the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub_cl.adapters.serving import ServingTable, answering, who_answers
from adapterhub_cl.errors import UsageError
from adapterhub_cl.evaluation.stored import evaluate_stored
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import DERIVED, AdapterRecord, Evaluation

if TYPE_CHECKING:
    from adapterhub_cl.bases.loading import LoadedBase
    from adapterhub_cl.progress import Reporter


def score_versions(
    registry: Registry,
    load: Callable[[], LoadedBase],
    refs: Sequence[str],
    data: str | Path | None,
    columns: Mapping[str, str] | None,
    batch_size: int,
    reporter: Reporter | None,
    task_name: str | None = None,
) -> list[tuple[str, Evaluation]]:
    """(version, score) pairs; see `AdapterHub.evaluate`.

    Args:
        refs: empty for every adapter that serves a task; of those, the ones without held-out data are passed over.
        task_name: whose prompt and labels the data have; default: the version's own task.
    """
    found: list[tuple[str, Evaluation]] = []
    for ref in refs or sorted(set(registry.serving().values())):
        record = registry.get(ref)
        if data is None and record.kind in DERIVED:
            found += [(record.ref, score) for score in _on_its_tasks(registry, load, record, reporter)]
            continue
        if not refs and data is None and not record.training.get("eval"):
            if reporter is not None:
                reporter.note(f"note: {record.ref} has no held-out data of its own; passed over")
            continue
        task = who_answers(ServingTable(registry), task_name, record.ref)[0]
        assert task is not None  # a version has one, or `who_answers` says so
        with answering(registry, load(), record.ref) as model:
            scores = evaluate_stored(
                model, load(), record, task, data, columns, batch_size=batch_size, reporter=reporter
            )
        registry.add_evaluations(record.ref, scores)
        registry.add_event("eval", record.ref, {"data": scores[0].data, scores[0].metric: scores[0].value})
        found += [(record.ref, score) for score in scores]
    if not found:
        raise UsageError("nothing to evaluate", "name an adapter and data: cl-adapter eval NAME --data TEST.jsonl")
    return found


def _on_its_tasks(
    registry: Registry, load: Callable[[], LoadedBase], record: AdapterRecord, reporter: Reporter | None
) -> list[Evaluation]:
    """A version that was made of others, on what each of its tasks is measured on; the scores are recorded."""
    from adapterhub_cl.evaluation.probes import probe_of, score, with_source

    probes = [probe for task in record.tasks if (probe := probe_of(registry, task)) is not None]
    if not probes:
        raise UsageError(f"nothing is left to measure {record.ref} on", "name data: --data TEST.jsonl --task NAME")
    with answering(registry, load(), record.ref) as model:
        scores = [with_source(score(model, load(), probe, reporter), probe) for probe in probes]
    registry.add_evaluations(record.ref, scores)
    for found in scores:
        registry.add_event("eval", record.ref, {"data": found.data, "task": found.task, found.metric: found.value})
    return scores
