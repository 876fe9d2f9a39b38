"""`forget-task`, and what `verify --forgotten` prints. Imports no torch unless something is made again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from cl_adapter import display
from cl_adapter.app import COMBINE, verb
from cl_adapter.completion import tasks
from cl_adapter.session import Session, ask

from adapterhub_cl.errors import UsageError

if TYPE_CHECKING:
    from adapterhub_cl.erasure.plan import ErasurePlan
    from adapterhub_cl.erasure.proof import Proof

_EXAMPLES = """cl-adapter forget-task news --dry-run
cl-adapter forget-task news --yes
cl-adapter forget-task news --everywhere --yes"""


@verb(COMBINE, _EXAMPLES)
def forget_task(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="the task", autocompletion=tasks)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be removed; remove nothing")] = False,
    retire: Annotated[
        bool,
        typer.Option(
            "--retire",
            help="remove merged and pruned adapters too, instead of making them again without the task",
        ),
    ] = False,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="also remove versions of other tasks that were trained on its rows")
    ] = False,
    leave_shared: Annotated[
        bool, typer.Option("--leave-shared", help="keep those versions, although they were trained on the rows")
    ] = False,
    key: Annotated[
        str | None, typer.Option(metavar="FILE", help="the tombstone's key; default: in your configuration")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove a task exactly: its versions, samples and scores, and everything made from them."""
    session = Session.of(ctx)
    if everywhere and leave_shared:
        raise UsageError("--everywhere and --leave-shared do not go together", "give one of them")
    hub = session.hub(write=not dry_run)
    shared = True if everywhere else False if leave_shared else None
    plan = hub.forget_task(name, dry_run=True, retire=retire, everywhere=shared)
    if not session.json:
        show_plan(plan)
    if not dry_run:
        from adapterhub_cl.erasure.removal import check_shared

        check_shared(plan, shared)  # before anybody is asked
        if not yes:
            lost = plan.tasks_without_adapter
            also = f", and leave {', '.join(lost)} without an adapter" if lost else ""
            ask(f"forget {name} for good{also}?", f"task {name}", "add --yes, or --dry-run to look")
        plan = hub.forget_task(name, retire=retire, everywhere=shared, key=key, reporter=session.reporter())
    if session.json:
        session.give({**plan.to_json(), "dry_run": dry_run})
    elif not dry_run:
        show_done(session, plan)


def show_plan(plan: ErasurePlan) -> None:
    """Print what a removal takes away."""
    from adapterhub_cl.erasure.plan import REPEATED

    again = {v.ref.partition("@")[0] for v in plan.versions if v.does == REPEATED and not v.replacement}
    rows = [(v.ref, v.does, v.why) for v in plan.versions]
    if rows:
        display.table(("version", "is", "because"), rows)
    same = ", ".join(f"{count} of {ref}" for ref, count in plan.elsewhere.items())
    display.pairs(
        {
            "replay samples": f"{plan.samples}" + (f", and with the same input {same}" if same else ""),
            "scores": plan.evaluations,
            "unfinished runs": ", ".join(plan.runs),
            "comparison hubs": ", ".join(plan.streams),
            "other files": ", ".join(plan.others),
            "kept answers": plan.kept or "",
            "served from then on": ", ".join(f"{task} by {ref}" for task, ref in plan.serve.items()),
            "aliases": ", ".join(
                f"{alias} → {to or ('its next version' if alias.partition('@')[0] in again else 'dropped')}"
                for alias, to in plan.aliases.items()
            ),
        }
    )
    for task in plan.tasks_without_adapter:
        print(f"WARNING: {task} loses its only adapter: nobody will answer for it")
    for ref, why in plan.shared.items():
        print(f"WARNING: {ref} stays, and knows the rows: {'it was ' if '@' in ref else ''}{why}")


def show_done(session: Session, plan: ErasurePlan) -> None:
    """Print what was removed, and the next step."""
    for version in plan.versions:
        if version.replacement:
            print(f"{version.ref} was made again without {plan.task}: {version.replacement}")
    for alias, to in plan.aliases.items():
        print(f"{alias} now names {to}" if to else f"{alias} was dropped")
    for task, ref in plan.serve.items():
        print(f"{task} is served by {ref} now")
    for ref, why in plan.reasons.items():
        print(f"{ref} was retired: {why}")
    for task in plan.tasks_without_adapter:
        print(f"nobody answers for {task} now; teach it again: {session.command(f'add-task {task} DATA')}")
    versions = f"{len(plan.versions)} version{'' if len(plan.versions) == 1 else 's'}"
    print(f"forgot {plan.task}: {versions} removed; tombstones/{plan.tombstone} has their hashes")
    session.note("copies outside the hub (exports, backups, the training data) are not touched")
    session.note(f"next: {session.command(f'verify --forgotten {plan.task}')}")


def show_proof(session: Session, proof: Proof) -> None:
    """Print the result of the search for a forgotten task; exit code 1 if it found something."""
    if session.json:
        session.give(proof.to_json())
    elif proof.found:
        for find in proof.found:
            where = find.path if find.offset is None else f"{find.path} at byte {find.offset}"
            print(f"{where}: {find.what}")
        print(f"{len(proof.found)} traces of {proof.task} are left")
    else:
        what = f"{proof.samples} samples and {proof.tensors} tensors"
        print(
            f"forgot {proof.task}: nothing of {what} is left in {proof.files} files ({display.size(proof.bytes)}); "
            f"{proof.windows} pieces searched for"
        )
        for state, count in proof.passed_over.items():
            session.note(f"not searched for: {count} × {_STATES[state.partition(' ')[2]].format(state.split()[0])}")
    if proof.found:
        raise typer.Exit(1)


_STATES = {
    "short": "a {} too short to be told from chance",
    "constant": "a {} that is one number throughout",
    "shared": "a {} whose very bytes also stand in other versions, which never learned the task",
}
