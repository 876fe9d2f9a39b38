"""`merge` and `distill`: versions made out of stored ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import COMBINE, verb
from cl_adapter.completion import versions
from cl_adapter.flags import Announcing, takes
from cl_adapter.session import Session
from cl_adapter.verbs_learn import outcome, show_refused

from adapterhub_cl.consolidation.asked import EPOCHS, DistillRequest, MergeRequest
from adapterhub_cl.distillation.distill_settings import DistillationSettings
from adapterhub_cl.errors import GateRefused, UsageError
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import AdapterRecord

Refs = Annotated[
    list[str] | None, typer.Argument(metavar="A B …", help="news, news@v2 or news@production", autocompletion=versions)
]
As = Annotated[str | None, typer.Option("--as", metavar="NAME", help="the new adapter's name")]
NewVersion = Annotated[bool, typer.Option("--new-version", help="NAME exists: make its next version")]


@verb(
    COMBINE,
    "cl-adapter merge news reviews --as both --method learned --min-retention 0.95\n"
    'cl-adapter merge --expression "0.7*news + 0.3*reviews - slang" --as calm --dry-run',
)
@takes(MergeRequest, config=False)
def merge(
    ctx: typer.Context,
    refs: Refs = None,
    name: As = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would come out; write nothing")] = False,
    new_version: NewVersion = False,
    *,
    given: dict[str, Any],
) -> None:
    """Merge adapters into one and measure how much of its score each task keeps."""
    session = Session.of(ctx)
    hub = session.hub(write=not dry_run)
    make = partial(
        hub.merge, refs or (), name=name, new_version=new_version, dry_run=dry_run, reporter=session.reporter(), **given
    )
    if dry_run:
        show_plan(session, make(), _show_plan)
    else:
        show_made(session, make)


@verb(
    COMBINE,
    "cl-adapter distill news reviews --as both --min-retention 0.97\n"
    "cl-adapter distill --as both --resume\ncl-adapter distill --refresh both",
)
@takes(
    DistillRequest,
    DistillationSettings,
    TrainingSettings,
    epochs=str(EPOCHS),
    rank="the largest teacher's",
    max_length="the teachers'",
)
def distill(
    ctx: typer.Context,
    refs: Refs = None,
    name: As = None,
    into: Annotated[
        str | None, typer.Option(metavar="HUB", help="the hub of another base that the student is trained for")
    ] = None,
    refresh: Annotated[
        str | None, typer.Option(metavar="NAME", help="make NAME again if a teacher has changed")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished run of --as NAME")] = False,
    new_version: NewVersion = False,
    *,
    given: dict[str, Any],
) -> None:
    """Distil several adapters into one, and measure how much of its score each task keeps."""
    from adapterhub_cl.hub import AdapterHub

    session = Session.of(ctx)
    if refresh is not None:
        if refs or given or name or resume or into:
            raise UsageError(
                "--refresh makes an adapter again as it was made", "give it alone: cl-adapter distill --refresh NAME"
            )
        _refresh(session, refresh)
        return
    if name is None:
        raise UsageError("the student needs a name", "add --as NAME")
    other = AdapterHub.open(into, device=session.device, dtype=session.dtype, base_path="") if into else None
    hub, reporter = session.hub(write=True), session.reporter()
    if resume:
        if refs or given:
            raise UsageError(
                "a resumed run keeps its teachers and its settings", f"cl-adapter distill --as {name} --resume"
            )
        show_made(session, lambda: hub.distill_resume(name, into=other, reporter=reporter))
        return
    said = " ".join(f"{key.replace('_', '-')}={value}" for key, value in given.items())
    announcing = Announcing(reporter, f"settings: {said or 'all at their defaults'}")
    show_made(
        session,
        lambda: hub.distill(refs or (), name=name, into=other, new_version=new_version, reporter=announcing, **given),
    )


def _refresh(session: Session, name: str) -> None:
    hub = session.hub(write=True)
    if hub.is_fresh(name):
        if session.json:
            session.give({**made_json(hub.get(name)), "refreshed": False})
        session.note("no teacher has a newer version: nothing was made")
        return
    show_made(session, lambda: hub.distill_refresh(name, reporter=session.reporter())[0])


def show_plan(session: Session, found: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
    """Print what a dry run found."""
    if session.json:
        session.give(found)
    else:
        show(found)


def show_made(session: Session, make: Callable[[], AdapterRecord]) -> None:
    """Make a version from others and print it, even if the gate refused it."""
    started = time.monotonic()
    try:
        record = make()
    except GateRefused as refused:
        show_refused(session, refused, made_json, _show)
        raise
    seconds = time.monotonic() - started
    if session.json:
        session.give({**made_json(record), "seconds": round(seconds, 1)})
        return
    _show(record, f"{seconds:.0f} s")
    if record.tasks:
        session.note(f"next: {session.command(f'promote {record.ref}')} lets it serve {', '.join(record.tasks)}")


def made_json(record: AdapterRecord) -> dict[str, Any]:
    """What `--json` gives for a version that was made of others."""
    made = record.manifest
    facts = {key: made[key] for key in ("truncation_error", "retention", "recipe", "storage") if key in made}
    return {**outcome(record), "tasks": record.tasks, **facts}


def _show(record: AdapterRecord, took: str = "") -> None:
    made = record.manifest
    recipe = made["recipe"]
    how = f" by {recipe['method']}" if recipe.get("method") else ""
    print(f"{record.ref}  {record.kind} from {', '.join(recipe['parents'])}{how}")
    rows = [
        (
            e["task"],
            _metric(e),
            e["answered_by"],
            display.value(e["before"]),
            display.value(e["after"]),
            e["n"],
            _share(e, made),
        )
        for e in made["gate"]["effects"]
    ]
    if rows:
        display.table(
            ("task", "metric", "parent", "its score", record.ref, "n", "retention"),
            rows,
            right=("its score", record.ref, "n", "retention"),
        )
    display.show_general(made["gate"])
    error = made.get("truncation_error")
    facts = [record.status, f"rank {record.rank}", display.size(record.bytes)]
    facts += [f"truncation error {error:.4f}"] if error is not None else []
    print(f"  {', '.join(fact for fact in [*facts, took] if fact)}")


def _metric(effect: dict[str, Any]) -> str:
    return "1/perplexity" if effect["metric"] == "perplexity" else str(effect["metric"])


def _share(effect: dict[str, Any], made: Any) -> str:
    return f"{made['retention'][effect['task']]:.3f}"


def _show_plan(found: dict[str, Any]) -> None:
    rows = [
        (p["ref"], ", ".join(p["tasks"]), p["rank"], p["layers"], f"{found['weights'][p['ref']]:.4g}")
        for p in found["parents"]
    ]
    display.table(("parent", "tasks", "rank", "layers", "weight"), rows, right=("rank", "layers", "weight"))
    for pair in found["interference"]:
        one, other = pair["adapters"]
        conflicts = pair["sign_conflicts"]
        told = "no layer in common" if conflicts is None else f"signs differ in {conflicts:.0%} (chance: 50 %)"
        print(f"  {one} and {other}: cosine {pair['cosine']:+.3f}, {told}")
    of = " of the plain sum (the method itself needs the base)" if found["estimated_on_the_plain_sum"] else ""
    print(f"{found['method']}: rank {found['rank']}, truncation error{of} {found['truncation_error']:.4f}")
    if (lost := found["found"].get("compression_error")) is not None:
        print(f"  {lost:.4f} of the updates' norm lies outside of the subspace that the method compresses them into")
    worst = sorted(found["layers"], key=lambda layer: -layer["truncation_error"])[:3]
    if found["truncation_error"] > 1e-6:
        print("  most in: " + ", ".join(f"{layer['name']} {layer['truncation_error']:.3f}" for layer in worst))
    print(f"  {display.size(found['bytes'])} on disk, {display.size(found['memory'])} of memory for the largest layer")
    print("nothing was written")
