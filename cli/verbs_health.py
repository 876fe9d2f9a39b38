"""`verify`, `gc`, `doctor`: is all well."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import HEALTH, verb
from cl_adapter.completion import SHELLS, script, versions
from cl_adapter.session import Session, ask
from cl_adapter.verbs_forget import show_proof

from adapterhub_cl.errors import IntegrityError, UnknownNameError, UsageError
from adapterhub_cl.types import Problem

if TYPE_CHECKING:
    from adapterhub_cl.registry.checks import Garbage


@verb(
    HEALTH,
    "cl-adapter verify --repair\n"
    "cl-adapter verify --forgotten news\n"
    "cl-adapter verify --against http://127.0.0.1:8000 --adapter news",
)
def verify(
    ctx: typer.Context,
    repair: Annotated[
        bool, typer.Option("--repair", help="repair everything that can be repaired without loss, then check")
    ] = False,
    rebuild_index: Annotated[
        bool, typer.Option("--rebuild-index", help="rebuild the index from the manifests, then check")
    ] = False,
    serving: Annotated[bool, typer.Option("--serving", help="also load the base and try each version on it")] = False,
    forgotten: Annotated[
        str | None, typer.Option(metavar="NAME", help="instead: search every byte for what a forgotten task left")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="FILE", help="the tombstones' key; default: in your configuration")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="URL", help="instead: ask a running server the held-out rows, and compare the scores"),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF", help="against: the version to ask for; default: all that serve", autocompletion=versions
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="against: the server's name of that version; default: its own")
    ] = None,
    rows: Annotated[int | None, typer.Option(metavar="N", help="against: rows of each task; default: all")] = None,
    min_retention: Annotated[
        float | None, typer.Option(help="against: share of the score that the server must keep [0.97]")
    ] = None,
) -> None:
    """Check every file's hash and everything else in the hub, or a server that answers for it."""
    session = Session.of(ctx)
    if against is not None:
        if repair or rebuild_index or serving or forgotten is not None or key is not None:
            raise UsageError("--against only asks a server", "give it without the other checks")
        _replay(session, against, adapter or [], model=model, rows=rows, min_retention=min_retention)
        return
    if adapter or model is not None or rows is not None or min_retention is not None:
        raise UsageError("--adapter, --model, --rows and --min-retention belong to --against", "add --against URL")
    if forgotten is not None:
        if repair or rebuild_index or serving:
            raise UsageError("--forgotten only searches", "give it alone")
        show_proof(session, session.hub().prove_forgotten(forgotten, key=key))
        return
    if key is not None and not repair:
        raise UsageError("--key is only used to search for a forgotten task", "add --forgotten NAME")
    done: list[str] = []
    if repair or rebuild_index:
        session.refuse_default()
    try:
        if rebuild_index:
            from adapterhub_cl.registry import Registry

            done.append(f"rebuilt the index from {Registry.rebuild_at(session.existing())} versions")
        hub = session.hub()
        if repair:
            done += hub.repair(key=key, reporter=session.reporter())
        problems = hub.verify(serving=serving, reporter=session.reporter())
    except IntegrityError as error:  # an index that cannot be read is a finding, not a failure to look
        problems = [Problem("index.db", error.message, error.hint)]
    for line in done:
        session.note(_clean(line))
    if session.json:
        rows = [problem.to_json() for problem in problems]
        session.give({"ok": not problems, "problems": rows, "done": done})
    elif problems:
        for problem in problems:
            print(f"{_clean(problem.path)}: {_clean(problem.problem)}\n  fix: {_clean(problem.fix)}")
    else:
        print("ok")
    if problems:
        raise typer.Exit(1)


def _replay(session: Session, url: str, refs: list[str], **asked: Any) -> None:
    """Tell what a server retains; ends with exit code 3 where that is too little."""
    from adapterhub_cl.evaluation.replaying import refused

    found = session.hub().verify_against(url, refs, reporter=session.reporter(), **asked)
    error = refused(found)
    if session.json:
        rows = [
            {"ref": one.ref, "model": one.model, "tasks": {t: asdict(p) for t, p in one.tasks.items()}} for one in found
        ]
        session.give({"ok": error is None, "versions": rows})
    else:
        lines: list[Any] = [
            (one.ref, one.model, t, p.metric, f"{p.adapter:.3f}", f"{p.export:.3f}", f"{p.retention:.3f}", p.n)
            for one in found
            for t, p in one.tasks.items()
        ]
        display.table(("version", "model", "task", "metric", "recorded", "server", "retention", "rows"), lines)
    if error is not None:
        if session.json:
            raise typer.Exit(error.exit_code)
        raise error


def _clean(text: str) -> str:
    """A text without what moves a terminal's cursor. Unlike `display.one_line` it leaves blanks as they are: a command
    that is to be copied names its file by them."""
    return "".join(c if c.isprintable() else "�" for c in text)


@verb(HEALTH, "cl-adapter gc --older-than 30 --dry-run")
def gc(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list them and remove nothing")] = False,
    older_than: Annotated[float, typer.Option(min=0.0, metavar="DAYS", help="age of unfinished runs to drop")] = 7.0,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove leftovers, old unfinished runs and deleted versions."""
    session = Session.of(ctx)
    registry = session.hub(write=not dry_run).registry
    found = registry.garbage(older_than)
    total = sum(item.bytes for item in found)
    if not session.json:
        _list(found, total)
    freed = 0
    if found and not dry_run:
        if not yes:
            ask(f"remove {len(found)} things, {display.size(total)}?", "files", "add --yes, or --dry-run to look")
        freed = registry.collect(found)
        session.note(f"freed {display.size(freed)}")
    if session.json:
        rows = [{"path": str(item.path), "reason": item.reason, "bytes": item.bytes} for item in found]
        session.give({"found": rows, "bytes": total, "freed": freed, "dry_run": dry_run})


def _list(found: list[Garbage], total: int) -> None:
    if not found:
        print("nothing to remove")
        return
    display.table(
        ("size", "reason", "path"), [(display.size(i.bytes), i.reason, i.path) for i in found], right=("size",)
    )
    print(f"{display.size(total)} in all")


@verb(HEALTH, 'cl-adapter completion bash\neval "$(cl-adapter completion bash)"      # as a line of ~/.bashrc')
def completion(
    ctx: typer.Context,
    shell: Annotated[str, typer.Argument(help="bash, zsh, fish or powershell", autocompletion=lambda: SHELLS)],
) -> None:
    """Print the script that lets a shell complete verbs, options, adapters and methods with Tab."""
    if shell not in SHELLS:
        raise UnknownNameError("shell", shell, SHELLS)
    session = Session.of(ctx)
    if session.json:
        session.give({"shell": shell, "script": script(shell)})
    else:
        print(script(shell))


@verb(HEALTH, "cl-adapter doctor")
def doctor(ctx: typer.Context) -> None:
    """Check the installation, the machine and the hub."""
    session = Session.of(ctx)
    from adapterhub_cl.doctor import examine

    checks = examine(session.where(), Path.cwd(), device=session.device)
    good = all(check.ok for check in checks)
    if session.json:
        session.give({"ok": good, "checks": [check.to_json() for check in checks]})
    else:
        rows: list[Any] = [("ok" if c.ok else "NO", c.name, c.detail) for c in checks]
        display.table(("", "check", "found"), rows)
        for check in checks:
            if check.fix:
                print(f"{check.name}: {_clean(check.fix)}")
    if not good:
        raise typer.Exit(1)
