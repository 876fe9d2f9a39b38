"""`rebase`: the hub's tasks in a hub on another base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import MOVE, verb
from cl_adapter.failures import FAILED
from cl_adapter.flags import takes
from cl_adapter.session import Session
from cl_adapter.verbs_learn import fit_router

from adapterhub_cl.errors import GateRefused
from adapterhub_cl.rebasing.rebase_options import RebaseOptions
from adapterhub_cl.settings import TrainingSettings

LEARNED = ("data", "samples", "pseudo-samples")

if TYPE_CHECKING:
    from adapterhub_cl.rebasing.rebase_steps import Rebased, TaskMove


@verb(MOVE, "cl-adapter rebase Qwen/Qwen3-0.6B --to new-hub --dry-run\ncl-adapter rebase Qwen/Qwen3-0.6B --to new-hub")
@takes(RebaseOptions, TrainingSettings)
def rebase(
    ctx: typer.Context,
    base: Annotated[str, typer.Argument(metavar="NEW_BASE", help="a folder, a GGUF file, a hub id, or tiny")],
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of the id")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say from what each task would be learned; write nothing")
    ] = False,
    *,
    given: dict[str, Any],
) -> None:
    """Learn the hub's tasks again in a hub on another base, measured against their old scores."""
    session = Session.of(ctx)
    reporter = session.reporter()
    found = session.hub().rebase(base, revision=revision, dry_run=dry_run, reporter=reporter, **given)
    if session.json:
        session.give({**found.to_json(), "dry_run": dry_run})
    elif dry_run:
        _show_plan(found)
    else:
        _show_moved(found)
    if dry_run:
        return
    if found.named("moved"):
        from adapterhub_cl.hub import AdapterHub

        fit_router(AdapterHub.open(found.hub, device=session.device, dtype=session.dtype, base_path=""), reporter)
    for state, told in (("rejected", "keep too little of their score"), ("failed", "could not be learned")):
        if names := found.named(state):
            session.note(f"{told}: {', '.join(names)}")
    if not session.json:
        for one in found.tasks:
            if one.state == "rejected":
                session.note(
                    f"to accept it as it is: cl-adapter --hub {found.hub} promote {one.new} --max-forgetting 1"
                )
        again = "the same command with --again, and more --epochs or --port, learns the rejected tasks once more"
        session.note(again if found.named("rejected") else f"next: cl-adapter --hub {found.hub} list")
    if found.named("rejected"):
        raise typer.Exit(GateRefused.exit_code)
    if found.named("failed") or found.named("not movable"):
        raise typer.Exit(FAILED)


def _show_plan(found: Rebased) -> None:
    expects = any(one.expected is not None for one in found.tasks)
    display.table(
        (
            "task",
            "version",
            "learned from",
            "rows",
            "measured on",
            *(("expected retention",) if expects else ()),
            "remark",
        ),
        [
            (
                one.task,
                one.old,
                _source(one),
                one.rows or None,
                f"{one.held} rows" if one.held else None,
                *((None if one.expected is None else f"{one.expected:.2f}",) if expects else ()),
                _remark(one),
            )
            for one in found.tasks
        ],
        right=("rows", "expected retention"),
    )
    for source in LEARNED:
        count = max((one.expected_from for one in found.tasks if one.source == source), default=0)
        if count:
            many = f"the mean of the {count} tasks that were" if count > 1 else "what the one task kept that was"
            print(f"expected from {source}: {many} moved into this hub from {source}")
    if not expects and any(one.state == "planned" and one.source in LEARNED for one in found.tasks):
        print(
            "what the tasks will keep cannot be told before one of them was learned on this base: move one with "
            "--tasks NAME, and --dry-run expects the same of the others"
        )
    print("nothing was written")


def _show_moved(found: Rebased) -> None:
    display.table(
        (
            "task",
            "old",
            "new",
            "learned from",
            "rows",
            "metric",
            "old score",
            "new score",
            "retention",
            "state",
            "time",
        ),
        [
            (
                one.task,
                one.old,
                one.new or None,
                _source(one),
                one.rows or None,
                one.metric or None,
                None if one.old_score is None else display.value(one.old_score),
                None if one.new_score is None else display.value(one.new_score),
                None if one.retention is None else f"{one.retention:.2f}",
                one.state,
                display.duration(one.seconds) if one.seconds else None,
            )
            for one in found.tasks
        ],
        right=("rows", "old score", "new score", "retention", "time"),
    )
    for one in found.tasks:
        if one.reason and one.state in ("not movable", "failed"):
            print(f"{one.task} {'failed' if one.state == 'failed' else 'is not movable'}: {one.reason}")


def _source(one: TaskMove) -> str:
    if one.state == "not movable":
        return "not movable"
    source = f"{one.rows} samples" if one.source == "samples" else one.source
    return f"{source}, trained on" if one.begun_as_copy else source


def _remark(one: TaskMove) -> str:
    done = f"{one.state} before, as {one.new}" if one.new else ""
    return "; ".join(part for part in (done, one.reason, *one.notes) if part)
