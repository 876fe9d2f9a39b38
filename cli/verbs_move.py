"""`alias`, `rollback`, `import`, `export`: what production uses, and the outside."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import MOVE, verb
from cl_adapter.completion import OneRef, formats, tasks, versions
from cl_adapter.flags import takes
from cl_adapter.session import Session
from cl_adapter.verbs_learn import outcome, show_outcome

from adapterhub_cl import exporting
from adapterhub_cl.errors import UsageError
from adapterhub_cl.types import PRODUCTION

FORMATS = "; ".join(f"{name}: {one.purpose}" for name, one in exporting.formats().items())


@verb(MOVE, "cl-adapter alias news@v2 production")
def alias(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(help="a version: news@v2", autocompletion=versions)],
    name: Annotated[
        str, typer.Argument(metavar="ALIAS", help="the alias; production decides which version serves the task")
    ],
) -> None:
    """Point an alias at a version."""
    session = Session.of(ctx)
    record = session.hub(write=True).alias(ref, name)
    if session.json:
        session.give({"ref": record.ref, "alias": name, "aliases": list(record.aliases)})
    else:
        print(f"{record.name}@{name} is now {record.ref}")
        session.note(f"to go back: {session.command(f'rollback {record.name}@{name}')}")
    if name == PRODUCTION and not record.task and record.tasks:
        session.note(
            f"note: {record.ref} answers for several tasks, and the alias moves none of them; "
            f"{session.command(f'promote {record.ref}')} lets it serve {display.some(record.tasks)}"
        )


@verb(MOVE, "cl-adapter rollback news@production")
def rollback(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="ALIAS", help="production, or news@production", autocompletion=versions)
    ],
) -> None:
    """Move an alias back to the previous version."""
    session = Session.of(ctx)
    hub = session.hub(write=True)
    was = hub.registry.serving()
    before, after = hub.rollback(name)
    moved = {task: ref for task, ref in hub.registry.serving().items() if was.get(task) != ref}
    if session.json:
        session.give({"alias": name, "from": before.ref, "to": after.ref, "serving": moved})
        return
    alias = name.rpartition("@")[2]
    if alias in hub.registry.aliases().get(before.name, {}):
        print(f"{alias}: {before.ref} → {after.ref}")
    else:
        print(f"{alias}: no longer {before.ref}; {before.name} has no such alias now, as before it was set")
    for task, ref in moved.items():
        print(f"  {task} is served by {ref}")
    session.note(f"next: {session.command(f'log {after.name} -n 5')} shows what it was before")


@verb(MOVE, "cl-adapter import ./my-lora --as news --labels world,sport,business", "import")
def import_adapter(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="DIR", help="the directory that PEFT's save_pretrained() wrote")],
    name: Annotated[str, typer.Option("--as", help="the adapter's name here")],
    task: Annotated[str | None, typer.Option(help="the task of this hub that it is for", autocompletion=tasks)] = None,
    kind: Annotated[str | None, typer.Option(help="the kind of a new task: choice, generation or text")] = None,
    labels: Annotated[str | None, typer.Option(help="the labels of a new choice task: a,b,c")] = None,
    instruction: Annotated[str | None, typer.Option(help="the instruction of a new task")] = None,
    prompt_format: Annotated[
        str | None, typer.Option(help="the prompt format of a new task; default: instruction")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="the score that stands for the task")] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="import it even if it was made for another base")
    ] = False,
) -> None:
    """Import a LoRA adapter written by PEFT, or an adapter written by export."""
    from adapterhub_cl.data.tasks import read_labels

    session = Session.of(ctx)
    described: dict[str, Any] = {
        "kind": kind,
        "labels": read_labels(labels) if labels is not None else None,
        "instruction": instruction,
        "prompt_format": prompt_format,
        "metric": metric,
    }
    described = {key: value for key, value in described.items() if value is not None}
    if task is not None and described:
        given = ", ".join("--" + key.replace("_", "-") for key in described)
        raise UsageError(f"--task names a known task; {given} would describe a new one", "give one or the other")
    record = session.hub(write=True).import_adapter(source, name, task=task, any_base=any_base, **described)
    if session.json:
        session.give(outcome(record))
        return
    show_outcome(record)
    session.note(f"next: {session.command(f'eval {record.name} --data TEST.jsonl')}")


@verb(MOVE, "cl-adapter export news@v2 -o ./news-lora")
@takes(*exporting.options(), config=False)
def export(
    ctx: typer.Context,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="a directory that is empty or does not exist yet")
    ],
    ref: OneRef = None,
    every: Annotated[
        bool, typer.Option("--all", help="instead of one: every version that answers now, to DIR/NAME")
    ] = False,
    format: Annotated[str, typer.Option(help=FORMATS, autocompletion=formats)] = exporting.DEFAULT,  # noqa: A002
    *,
    given: dict[str, Any],
) -> None:
    """Write a version for use elsewhere."""
    session = Session.of(ctx)
    if (ref is None) != every:
        raise UsageError(
            "export one version, or all of them: say which",
            "cl-adapter export NAME -o DIR, or cl-adapter export --all -o DIR",
        )
    hub = session.hub()
    if ref is None:
        refs = hub.export_all(output, format=format, reporter=session.reporter(), **given)
        if session.json:
            session.give({"refs": refs, "path": output, "format": format})
        else:
            for one in refs:
                print(f"{one} → {output}/{one.partition('@')[0]}")
        return
    record = hub.get(ref)
    path = hub.export(record.ref, output, format=format, reporter=session.reporter(), **given)
    if session.json:
        proof = path / exporting.PROOF
        told = {"proof": json.loads(proof.read_text(encoding="utf-8"))} if proof.is_file() else {}
        session.give({"ref": record.ref, "path": str(path), "format": format, **told})
    else:
        print(f"{record.ref} → {path}")
        for step in exporting.ROOM.get(format)().next_steps(path, hub.base):
            session.note(step)
