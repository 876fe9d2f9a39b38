"""`route` and `drift`: where inputs would go, and whether they are still what the hub knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from cl_adapter import display
from cl_adapter.app import USE, verb
from cl_adapter.session import Session
from cl_adapter.verbs_use import File, Router, Set, TopK, inputs_of, router_options

from adapterhub_cl.errors import GateRefused

if TYPE_CHECKING:
    from adapterhub_cl.deciding.drift import Drift
    from adapterhub_cl.types import Route

Columns = Annotated[str | None, typer.Option(help="which column of the file is the text: input=a")]
_NEAREST = 3


@verb(USE, 'cl-adapter route "Fed raises rates" --explain\ncl-adapter route --file inputs.jsonl --top-k 2 --json')
def route(
    ctx: typer.Context,
    texts: Annotated[list[str] | None, typer.Argument(help="default: stdin, one text a line")] = None,
    file: File = None,
    router: Router = None,
    top_k: TopK = 1,
    set_: Set = None,
    explain: Annotated[bool, typer.Option("--explain", help="also all scores and the nearest replay samples")] = False,
    columns: Columns = None,
) -> None:
    """Show which task's adapter would answer each text, and the router's confidence."""
    session = Session.of(ctx)
    hub = session.hub()
    found = hub.route(
        inputs_of(session, hub, texts, file, columns, "route"),
        router=router,
        top_k=top_k,
        options=router_options(set_),
        explain=_NEAREST if explain else 0,
        reporter=session.reporter(),
    )
    if session.json:
        session.give([one.to_json() for one in found])
        return
    if explain:
        for number, one in enumerate(found):
            if number:
                print()
            _explain(one)
        return
    display.table(
        ("task", "weight", "confidence", "adapter", "text"),
        [
            (task, f"{weight:.2f}", f"{one.confidence:.3f}", ref, one.text)
            for one in found
            for task, weight, ref in _lines(one)
        ],
        right=("weight", "confidence"),
    )


def _lines(route: Route) -> list[tuple[str, float, str]]:
    """Task, weight and adapter of each row; the base gets a row if the input is out of distribution."""
    if route.out_of_distribution:
        return [("-", 1.0, f"base (out of distribution; nearest task: {next(iter(route.tasks))})")]
    refs = " + ".join(route.adapters)
    return [(task, weight, refs) for task, weight in route.tasks.items()]


def _explain(one: Route) -> None:
    task, _, ref = _lines(one)[0]
    display.pairs(
        {
            "text": one.text,
            "goes to": f"{ref}, task {task}" if not one.out_of_distribution else ref,
            "mixed": ", ".join(f"{t} {w:.2f}" for t, w in one.tasks.items()) if len(one.tasks) > 1 else "",
            "why": one.why,
            "confidence": f"{one.confidence:.3f}",
            "like what it knows": _against(one),
        }
    )
    ordered = sorted(one.scores.items(), key=lambda pair: -pair[1])
    display.table(("task", "score"), [(name, f"{score:.3f}") for name, score in ordered], right=("score",))
    if one.nearest:
        display.table(
            ("nearest sample", "task", "cosine"),
            [(display.short(text), name, f"{cosine:.3f}") for name, text, cosine in one.nearest],
            right=("cosine",),
        )


def _against(one: Route) -> str:
    if one.familiarity is None or one.threshold is None:
        return ""
    said = "no: below" if one.familiarity < one.threshold else "yes: at or above"
    return f"{said} the threshold ({one.familiarity:.3g}, {one.threshold:.3g})"


@verb(USE, "cl-adapter drift last-week.jsonl\ncl-adapter drift last-week.txt --fail-above 0.2 --json")
def drift(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(help="inputs: JSONL, CSV, …; or .txt with one text a line")],
    router: Router = None,
    set_: Set = None,
    columns: Columns = None,
    fail_above: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="exit with code 3 if more than this share (0 to 1) is out of distribution"),
    ] = None,
) -> None:
    """Report how many inputs are out of distribution, and whether there is a new task among them."""
    session = Session.of(ctx)
    hub = session.hub()
    found = hub.drift(
        inputs_of(session, hub, None, file, columns, "drift"),
        router=router,
        options=router_options(set_),
        reporter=session.reporter(),
    )
    if session.json:
        session.give(found.to_json())
    else:
        print_drift(found)
    if fail_above is not None and found.share > fail_above:
        session.note(f"{found.share:.1%} are out of distribution, more than --fail-above {fail_above:g}")
        raise typer.Exit(GateRefused.exit_code)


def print_drift(found: Drift) -> None:
    low, high = found.interval
    display.pairs(
        {
            "inputs": found.n,
            "out of distribution": f"{found.out} ({found.share:.1%}, 95 % {low:.1%}–{high:.1%})",
            "expected of known tasks": f"{found.expected_share:.1%} (p = {found.p_value:.2g})",
        }
    )
    if found.tasks:
        display.table(("task", "inputs"), sorted(found.tasks.items(), key=lambda pair: -pair[1]), right=("inputs",))
    for number, cluster in enumerate(found.clusters, 1):
        tight = "" if cluster.tightness is None else f", tightness {cluster.tightness:.2f}"
        near = f", nearest task {cluster.nearest_task}" if cluster.nearest_task else ""
        print(f"cluster {number}: {len(cluster.members)} inputs ({cluster.share:.1%}){tight}{near}")
        for text in cluster.examples:
            print(f"  {display.short(text, 100)}")
    for line in found.proposals:
        print(line)
