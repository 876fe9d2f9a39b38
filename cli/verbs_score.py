"""`eval`: score adapters."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import USE, verb
from cl_adapter.completion import tasks, versions
from cl_adapter.session import Session
from cl_adapter.verbs_stream import show_matrix

from adapterhub_cl.errors import UsageError
from adapterhub_cl.types import Evaluation


@verb(USE, "cl-adapter eval news --data test.jsonl --report", "eval")
def evaluate(
    ctx: typer.Context,
    refs: Annotated[
        list[str] | None,
        typer.Argument(help="adapters; default: every one that serves a task", autocompletion=versions),
    ] = None,
    data: Annotated[str | None, typer.Option(help="default: each one's own held-out data")] = None,
    columns: Annotated[str | None, typer.Option(help="which column is which: input=a,output=b")] = None,
    task: Annotated[
        str | None, typer.Option(help="the task of --data, if the adapter answers for several", autocompletion=tasks)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="examples in one batch")] = 32,
    report: Annotated[bool, typer.Option("--report", help="precision, recall and F1 of each class")] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="the score of every task after each task was learned, and BWT")
    ] = False,
) -> None:
    """Score adapters on their tasks, and record the scores."""
    from adapterhub_cl.data.columns import parse_columns

    session = Session.of(ctx)
    if matrix:
        if refs or data:
            raise UsageError("the accuracy matrix is of the whole hub", "cl-adapter eval --matrix")
        whole = session.hub(write=True).evaluate(matrix=True, reporter=session.reporter())
        if session.json:
            session.give({**whole.to_json(), "results": []})
        else:
            show_matrix(whole)
        return
    given = parse_columns(columns) if columns else None
    found = session.hub(write=True).evaluate(
        refs or (), data=data, columns=given, task=task, batch_size=batch_size, reporter=session.reporter()
    )
    if session.json:
        session.give({"results": [_result(ref, score, report) for ref, score in found]})
        return
    display.scores(found)
    if report:
        for ref, score in found:
            if score.details.get("classes"):
                print(f"\n{ref} on {score.task}")
                display.class_report(score)
    session.note(f"next: {session.command('eval --matrix')} shows every task after each was learned")


def _result(ref: str, score: Evaluation, report: bool) -> dict[str, Any]:
    row = {"adapter": ref, "task": score.task, "metric": score.metric, "value": score.value, "n": score.n}
    row |= {"interval": score.details.get("interval"), "data": score.data}
    return {**row, "report": score.details.get("classes")} if report else row
