"""`eval` and `bisect`: score adapters, and find the version that broke some rows."""

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

SHOWN = 20  # broken rows that are printed; --json has all of them
BATCH = 32  # examples that are scored at once


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
    batch_size: Annotated[int, typer.Option(min=1, help="examples in one batch")] = BATCH,
    report: Annotated[bool, typer.Option("--report", help="precision, recall and F1 of each class")] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="the score of every task after each task was learned, and BWT")
    ] = False,
) -> None:
    """Score adapters on their tasks, and record the scores."""
    from adapterhub_cl.data.columns import parse_columns

    session = Session.of(ctx)
    if matrix:
        given = {"an adapter": refs, "--data": data, "--columns": columns, "--task": task, "--report": report}
        given["--batch-size"] = batch_size != BATCH
        if found := [what for what, value in given.items() if value]:
            raise UsageError(
                f"the accuracy matrix is of the whole hub: {' and '.join(found)} cannot be given with --matrix",
                "cl-adapter eval --matrix",
            )
        whole = session.hub(write=True).evaluate(matrix=True, reporter=session.reporter())
        if session.json:
            session.give({**whole.to_json(), "results": []})
        else:
            show_matrix(whole)
        return
    scores = session.hub(write=True).evaluate(
        refs or (),
        data=data,
        columns=parse_columns(columns) if columns else None,
        task=task,
        batch_size=batch_size,
        reporter=session.reporter(),
    )
    if session.json:
        session.give({"results": [_result(ref, score, report) for ref, score in scores]})
        return
    display.scores(scores)
    for ref, score in scores:
        if cut := score.details.get("cut_inputs"):
            session.note(
                f"note: {cut} of {score.n} inputs of {score.task} are longer than {ref} was trained to read, and were "
                "cut to that limit; a version trained with a larger --max-length reads more of them"
            )
    if report:
        for ref, score in scores:
            if score.details.get("classes"):
                print(f"\n{ref} on {score.task}")
                display.class_report(score)
    session.note(f"next: {session.command('eval --matrix')} shows every task after each was learned")


@verb(USE, "cl-adapter bisect news --data complaints.jsonl")
def bisect(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="the adapter whose versions are searched", autocompletion=versions)],
    data: Annotated[str, typer.Option(help="rows with their right answers")],
    good: Annotated[
        str | None, typer.Option(help="an older version; default: the first", autocompletion=versions)
    ] = None,
    bad: Annotated[
        str | None, typer.Option(help="a newer version; default: the newest", autocompletion=versions)
    ] = None,
    columns: Annotated[str | None, typer.Option(help="which column is which: input=a,output=b")] = None,
    task: Annotated[
        str | None, typer.Option(help="the task of --data, if the adapter answers for several", autocompletion=tasks)
    ] = None,
) -> None:
    """Find the versions of an adapter that broke some rows."""
    from adapterhub_cl.data.columns import parse_columns

    session = Session.of(ctx)
    given = parse_columns(columns) if columns else None
    found = session.hub().bisect(name, data, good=good, bad=bad, columns=given, task=task, reporter=session.reporter())
    if session.json:
        session.give(found.to_json())
        return
    if not found.broken:
        print(f"no row broke: {found.bad} has right what {found.good} has right of {found.rows} rows")
        return
    count = len(found.broken)
    print(f"{count} of {found.rows} rows broke between {found.good} and {found.bad}")
    if found.tried:
        display.table(
            ("version", "rows asked", "right of them"),
            [(one.ref, one.rows, one.right) for one in found.tried],
            right=("rows asked", "right of them"),
        )
    for ref, rows in found.breakers.items():
        before = next(row.before for row in found.broken if row.first == ref)
        print(f"{ref} broke {rows} of them, which {before} still has right")
    display.table(
        ("row", "broken by", "right", f"{found.bad} says", "text"),
        [
            (
                display.short(row.place, 40),
                row.first,
                display.short(row.wanted, 30),
                display.short(row.said, 30),
                display.short(row.text),
            )
            for row in found.broken[:SHOWN]
        ],
    )
    if count > SHOWN:
        session.note(f"and {count - SHOWN} more; --json lists all of them")
    session.note(f"next: {session.command(f'show {found.first}')} says what it was trained on")


def _result(ref: str, score: Evaluation, report: bool) -> dict[str, Any]:
    row = {"adapter": ref, "task": score.task, "metric": score.metric, "value": score.value, "n": score.n}
    row |= {"interval": score.details.get("interval"), "data": score.data}
    row |= {"cut_inputs": score.details["cut_inputs"]} if "cut_inputs" in score.details else {}
    return {**row, "report": score.details.get("classes")} if report else row
