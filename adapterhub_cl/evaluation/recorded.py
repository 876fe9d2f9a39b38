"""Scores stored versions of a hub on given data, or on the held-out data that they were scored on when they were made,
and records the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub_cl import objectives
from adapterhub_cl.adapters.serving import ServingTable, answering, who_answers
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.context import Hub
from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.data.label_forms import for_task
from adapterhub_cl.data.tasks import check_answers
from adapterhub_cl.errors import DataError, UnknownNameError, UsageError
from adapterhub_cl.evaluation.probes import probe_of, score, with_source
from adapterhub_cl.evaluation.scoring import evaluate
from adapterhub_cl.progress import Reporter
from adapterhub_cl.types import DERIVED, AdapterRecord, Evaluation, Task


def score_versions(
    hub: Hub,
    refs: Sequence[str],
    data: str | Path | None,
    columns: Mapping[str, str] | None,
    batch_size: int,
    task_name: str | None = None,
) -> list[tuple[str, Evaluation]]:
    """(version, score) pairs; see `AdapterHub.evaluate`.

    Args:
        refs: empty for every adapter that serves a task; of those, the ones without held-out data are skipped.
        task_name: whose prompt and labels the data have; default: the version's own task.
    """
    found: list[tuple[str, Evaluation]] = []
    for ref in refs or sorted(set(hub.registry.serving().values())):
        record = hub.registry.get(ref)
        derived = data is None and record.kind in DERIVED
        if derived and task_name is not None and task_name not in record.tasks:
            if refs:
                raise UnknownNameError(f"task of {record.ref}", task_name, record.tasks)
            continue
        if derived:
            scores = _on_its_tasks(hub, record, task_name, batch_size)
        elif not refs and data is None and not record.training.get("eval"):
            hub.reporter.note(f"note: {record.ref} has no held-out data of its own; skipped")
            continue
        else:
            task, _ = who_answers(ServingTable(hub.registry), task_name, record.ref)
            assert task is not None  # a version has one, or `who_answers` says so
            with answering(hub.registry, hub.base, record.ref) as model:
                scores = _on_data(model, hub.base, record, task, data, columns, batch_size, hub.reporter)
        hub.registry.add_evaluations(record.ref, scores)
        for one in scores if derived else scores[:1]:
            about = {"data": one.data, **({"task": one.task} if derived else {}), one.metric: one.value}
            hub.registry.add_event("eval", record.ref, about)
        found += [(record.ref, score) for score in scores]
    if not found:
        raise UsageError("nothing to evaluate", "name an adapter and data: cl-adapter eval NAME --data TEST.jsonl")
    return found


def _on_its_tasks(hub: Hub, record: AdapterRecord, only: str | None, batch_size: int) -> list[Evaluation]:
    """Score a version that was made from others on the data of each of its tasks, or only of one."""
    tasks = record.tasks if only is None else [only]
    probes = [probe for task in tasks if (probe := probe_of(hub.registry, task)) is not None]
    if not probes:
        raise UsageError(f"no data is left to measure {record.ref} on", "name data: --data TEST.jsonl --task NAME")
    with answering(hub.registry, hub.base, record.ref) as model:
        scores = [score(model, hub.base, probe, hub.reporter, batch_size=batch_size) for probe in probes]
        return [with_source(one, probe.sha256) for one, probe in zip(scores, probes, strict=True)]


def _on_data(
    model: Any,
    base: LoadedBase,
    record: AdapterRecord,
    task: Task,
    data: str | Path | None,
    columns: Mapping[str, str] | None,
    batch_size: int,
    reporter: Reporter,
) -> list[Evaluation]:
    """All metrics of one version.

    Args:
        model: the base with the version active.
        data: None takes the version's own held-out data.

    Raises:
        DataError: no held-out data is known, it is not there any more, or it has changed.
    """
    training = record.training
    known = training.get("eval") or {}
    if data is None and not known:
        raise DataError(
            f"{record.ref} has no held-out data of its own", f"cl-adapter eval {record.name} --data TEST.jsonl"
        )
    learned = (training.get("data") or {}).get("columns") or None
    columns = learned if columns is None else columns
    source = data if data is not None else known["source"]
    examples = read_examples(source, columns, task.instruction, layout=task.layout)
    if data is None and examples.sha256 != known["sha256"]:
        raise DataError(
            f"{known['source']} has changed since {record.ref} was scored on it",
            f"to score on it as it is now: cl-adapter eval {record.name} --data {known['source']}",
        )
    if examples.layout == "raw text" and task.kind != "text":
        task = task.as_text()
    else:
        examples = for_task(task, examples)
        check_answers(task, examples)
    for remark in examples.remarks:
        reporter.note(remark)
    with reporter.piece(f"evaluating {record.ref}", len(examples)) as advance:
        found = evaluate(
            model,
            base.tokenizer,
            objectives.of(base.info),
            task,
            examples.examples,
            data=examples.source,
            max_length=base.context,
            dtype=base.dtype,
            batch_size=batch_size,
            progress=advance,
        )
    # The gate takes a score of these very rows again: a file of this name may change, and have other columns read.
    seal = examples.sha256 if (columns or None) == learned else ""
    return [with_source(one, seal) for one in found]
