"""`serve` and `key`: answer over HTTP, and who may ask."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from cl_adapter.app import USE, verb
from cl_adapter.flags import takes
from cl_adapter.session import Session

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import from_mapping
from adapterhub_cl.server.serve_options import ServeOptions


@verb(USE, "cl-adapter serve --port 8321")
@takes(ServeOptions)
def serve(ctx: typer.Context, *, given: dict[str, Any]) -> None:
    """Answer over HTTP to any OpenAI client: one process, all adapters of the hub, the task found by the router."""
    session = Session.of(ctx)
    options = from_mapping(ServeOptions, given, "the command line")
    try:
        from adapterhub_cl.server.running import serve as run
    except ModuleNotFoundError as error:
        raise UsageError(
            f"serve needs the package {error.name}, which is not installed", "pip install 'adapterhub-cl[serve]'"
        ) from error
    hub = session.hub()

    def ready(address: str) -> None:
        if session.json:
            session.give({"url": address})
        else:
            print(f"{hub.folder} answers at {address}/v1 (Ctrl-C ends it)", flush=True)
            session.note(f"try: curl {address}/v1/models")

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("adapterhub_cl.server")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        run(hub, options, reporter=session.reporter(), ready=ready)
    finally:
        log.removeHandler(handler)


@verb(USE, "cl-adapter key alice --file keys.json --role ask")
def key(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="whose key it is: a name for the log")],
    file: Annotated[Path, typer.Option(help="the file of keys that serve --keys reads; made if it is not there")],
    role: Annotated[
        str, typer.Option(help="read: models, files, jobs and figures; ask: answers too; steer: everything")
    ] = "ask",
) -> None:
    """Make an API key for the server. It is printed once; the file holds its hash only."""
    from adapterhub_cl.server.api_keys import add_key

    session = Session.of(ctx)
    secret = add_key(file, name, role)
    if session.json:
        session.give({"name": name, "role": role, "key": secret, "file": str(file)})
        return
    print(secret)
    session.note(f"this is shown once; {file} keeps its hash. Send it as the header: Authorization: Bearer KEY")
