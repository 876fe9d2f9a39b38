"""`report`: one HTML page about a hub. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from cl_adapter import display
from cl_adapter.app import LOOK, verb
from cl_adapter.session import Session


@verb(LOOK, "cl-adapter report -o report.html")
def report(
    ctx: typer.Context,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="where to write it; an earlier report is replaced")
    ] = "report.html",
    title: Annotated[str | None, typer.Option(help="title of the page; default: the hub's name")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="overwrite the file even if it is not a report")
    ] = False,
) -> None:
    """Write one HTML page about the hub: matrix, forgetting, lineage, routing, gate, sizes."""
    from adapterhub_cl.reporting.page import write

    session = Session.of(ctx)
    made = write(session.hub().registry, Path(output), title=title, overwrite=overwrite)
    if session.json:
        session.give(made.to_json())
        return
    print(f"{session.existing()} → {made.path} ({display.size(made.bytes)})")
    for note in made.notes:
        session.note(f"note: {note}")
    session.note(f"next: open {made.path.resolve().as_uri()}")
