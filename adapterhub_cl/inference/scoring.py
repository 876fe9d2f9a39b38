"""Scores stored versions of a hub and records the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub_cl.errors import UsageError
from adapterhub_cl.evaluation.stored import evaluate_stored
from adapterhub_cl.inference.serving import answering, task_of
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import Evaluation

if TYPE_CHECKING:
    from adapterhub_cl.bases.loading import LoadedBase
    from adapterhub_cl.training.progress import Reporter


def score_versions(
    registry: Registry,
    load: Callable[[], LoadedBase],
    refs: Sequence[str],
    data: str | Path | None,
    columns: Mapping[str, str] | None,
    batch_size: int,
    reporter: Reporter | None,
) -> list[tuple[str, Evaluation]]:
    """(version, score) pairs; see `AdapterHub.evaluate`.

    Args:
        refs: empty for every adapter that serves a task; of those, the ones without held-out data are passed over.
    """
    found: list[tuple[str, Evaluation]] = []
    for ref in refs or sorted(set(registry.serving().values())):
        record = registry.get(ref)
        if not refs and data is None and not record.manifest.get("training", {}).get("eval"):
            if reporter is not None:
                reporter.note(f"note: {record.ref} has no held-out data of its own; passed over")
            continue
        task = task_of(registry, record)
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
