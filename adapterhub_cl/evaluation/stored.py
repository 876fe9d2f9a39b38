"""Scores a stored version on given data, or on the held-out data that it was scored on when it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterhub_cl import objectives
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.data.layouts import Columns
from adapterhub_cl.data.tasks import check_answers
from adapterhub_cl.errors import DataError
from adapterhub_cl.evaluation.scoring import evaluate
from adapterhub_cl.types import AdapterRecord, Evaluation, Task


def evaluate_stored(
    model: Any,
    base: LoadedBase,
    record: AdapterRecord,
    task: Task,
    data: str | Path | None,
    columns: Columns | None,
    *,
    batch_size: int = 32,
    reporter: Any = None,
) -> list[Evaluation]:
    """All metrics of one version.

    Args:
        model: the base with the version active.
        data: None takes the version's own held-out data.
        reporter: shows the progress.

    Raises:
        DataError: no held-out data is known, it is not there any more, or it has changed.
    """
    training = record.training
    known = training.get("eval") or {}
    if data is None and not known:
        raise DataError(
            f"{record.ref} has no held-out data of its own", f"cl-adapter eval {record.name} --data TEST.jsonl"
        )
    if columns is None and training.get("data"):
        columns = training["data"].get("columns") or None
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
        check_answers(task, examples)
    if reporter is not None:
        reporter.start(f"evaluating {record.ref}", len(examples))
    try:
        return evaluate(
            model,
            base.tokenizer,
            objectives.of(base.info),
            task,
            examples.examples,
            data=examples.source,
            max_length=base.context,
            dtype=base.dtype,
            batch_size=batch_size,
            progress=reporter.advance if reporter else None,
        )
    finally:
        if reporter is not None:
            reporter.finish()
