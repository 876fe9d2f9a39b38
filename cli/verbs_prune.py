"""`prune`: smaller adapters, and fewer of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import COMBINE, verb
from cl_adapter.completion import versions
from cl_adapter.flags import flags, takes
from cl_adapter.session import Session, ask
from cl_adapter.verbs_combine import show_made, show_plan

from adapterhub_cl.consolidation.asked import ALIKE, UNUSED_DAYS, PruneRequest
from adapterhub_cl.errors import UsageError


@verb(
    COMBINE,
    "cl-adapter prune news --dry-run\n"
    "cl-adapter prune news --search --min-retention 0.95\n"
    "cl-adapter prune news --rank 4 --store int8\n"
    "cl-adapter prune --redundant\n"
    "cl-adapter prune --unused --days 90 --dry-run",
)
@takes(PruneRequest, config=False)
def prune(
    ctx: typer.Context,
    ref: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="the version to make smaller: news@v2", autocompletion=versions),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="a new adapter; default: the next version")
    ] = None,
    redundant: Annotated[
        bool, typer.Option("--redundant", help="instead: find pairs of adapters that do the same and could be merged")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help=f"--redundant: how similar, and how often equal answers; default: {ALIKE}"),
    ] = None,
    unused: Annotated[
        bool, typer.Option("--unused", help="instead: remove versions that nobody uses; gc frees their space")
    ] = False,
    days: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="N", help=f"--unused: unused for so many days; default: {UNUSED_DAYS:g}"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done; write nothing")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    *,
    given: dict[str, Any],
) -> None:
    """Make an adapter smaller, or find adapters that are redundant or unused."""
    session = Session.of(ctx)
    _one_of(ref, redundant, unused)
    for flag, found, owner in (("--threshold", threshold, redundant), ("--days", days, unused)):
        if found is not None and not owner:
            raise UsageError(
                f"{flag} belongs to --{'redundant' if flag == '--threshold' else 'unused'}", "leave it out"
            )
    if ref is not None:
        hub = session.hub(write=not dry_run)
        make = partial(hub.prune, ref, name=name, dry_run=dry_run, reporter=session.reporter(), **given)
        if dry_run:
            show_plan(session, make(), _show_plan)
        else:
            show_made(session, make)
        return
    evaluate = given.pop("evaluate", True)
    written = [*(["--as"] if name else []), *([flags(given, PruneRequest)] if given else [])]
    if written:
        raise UsageError(
            f"{', '.join(written)} can only be used with the NAME of an adapter to make smaller",
            "leave it out, or name an adapter",
        )
    if redundant:
        _redundant(session, evaluate, ALIKE if threshold is None else threshold)
    else:
        _unused(session, UNUSED_DAYS if days is None else days, dry_run, yes)


_SHOWN = 8  # layers, or pairs, in a table for people


def _one_of(ref: str | None, redundant: bool, unused: bool) -> None:
    if (ref is not None) + redundant + unused != 1:
        raise UsageError(
            "prune takes exactly one of NAME, --redundant and --unused",
            "prune NAME makes it smaller; --redundant finds pairs to merge; --unused finds versions to remove",
        )


def _show_plan(found: Mapping[str, Any]) -> None:
    about = found["storage"]
    worst = sorted(found["layers"], key=lambda row: -row["error"])
    rows = [(row["name"], row["rank_before"], row["rank"], f"{row['error']:.4f}") for row in worst[:_SHOWN]]
    columns = ("layer", "rank", "kept", "error of ΔW")
    display.table(columns, rows, right=columns[1:])
    if len(worst) > _SHOWN:
        print(f"  and {len(worst) - _SHOWN} layers that lose less (--json has them all)")
    print(
        f"{found['parents'][0]}: {found['ranks_before']} → {found['ranks']} ranks in all, highest {found['rank']}; "
        f"error of ΔW {found['error']:.4f}, of it by truncation {found['truncation_error']:.4f}"
    )
    print(
        f"  {about['format_before']} → {about['format']}, "
        f"{display.size(about['bytes_before'])} → about {display.size(about['bytes'])}"
    )
    print("nothing was written")


def _redundant(session: Session, evaluate: bool, threshold: float) -> None:
    found = session.hub().redundant(threshold=threshold, evaluate=evaluate, reporter=session.reporter())
    if session.json:
        session.give(found)
        return
    pairs = sorted(found["pairs"], key=lambda row: (not row["redundant"], -row["similarity"]))
    rows = [row for k, row in enumerate(pairs) if row["redundant"] or k < _SHOWN]
    rows = rows or ([found["nearest"]] if found["nearest"] else [])
    if not found["pairs"]:
        print(f"no two of {len(found['compared'])} adapters are similar to {threshold:g}" + (", nearest:" * bool(rows)))
    columns = ("similarity", "columns", "rows", "cosine", "same answers")
    if rows:
        display.table(
            ("adapter", "and", *columns, "redundant"),
            [_pair(row) for row in rows],
            right=columns,
        )
    if len(rows) < len(pairs):
        print(f"and {len(pairs) - len(rows)} pairs that are similar and not redundant (--json has them all)")
    for row in found["pairs"]:
        if row["redundant"]:
            session.note(f"next: {session.command(row['command'])}")


def _pair(row: Mapping[str, Any]) -> tuple[Any, ...]:
    numbers = (f"{row[key]:.3f}" for key in ("similarity", "columns", "rows"))
    same = None if row["agreement"] is None else f"{row['agreement']:.1%} of {row['n']}"
    return (*row["adapters"], *numbers, f"{row['cosine']:+.3f}", same, "yes" if row["redundant"] else "no")


def _unused(session: Session, days: float, dry_run: bool, yes: bool) -> None:
    hub = session.hub(write=not dry_run)
    verdicts = hub.unused(days)
    proposed = [verdict for verdict in verdicts if verdict.proposed]
    total = sum(verdict.record.bytes for verdict in proposed)
    if not session.json:
        columns = ("version", "size", "last used", "removed?", "why")
        rows = [
            (
                v.record.ref,
                display.size(v.record.bytes),
                display.moment(v.used.isoformat()),
                "yes" if v.proposed else "no",
                v.reason,
            )
            for v in sorted(verdicts, key=lambda v: not v.proposed)
        ]
        display.table(columns, rows, right=("size",))
        print(f"{len(proposed)} of {len(verdicts)} versions are unused, {display.size(total)}")
    removed: list[str] = []
    if proposed and not dry_run:
        if not yes:
            ask(
                f"remove {len(proposed)} versions, {display.size(total)}?",
                "versions",
                "add --yes, or --dry-run to look",
            )
        removed = [record.ref for record in hub.remove([v.record.ref for v in proposed], days=days)]
        session.note(f"removed {', '.join(removed)}; {session.command('gc')} frees the space")
    if session.json:
        session.give(
            {
                "days": days,
                "versions": [verdict.to_json() for verdict in verdicts],
                "bytes": total,
                "removed": removed,
                "dry_run": dry_run,
            }
        )
