"""`stream`, `promote`, `forgetting`: sequences of tasks, and what was forgotten."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import LOOK, MAKE, MOVE, verb
from cl_adapter.completion import strategies, versions
from cl_adapter.flags import takes
from cl_adapter.session import Session

from adapterhub_cl.errors import GateRefused, UsageError
from adapterhub_cl.evaluation.gate import Effect
from adapterhub_cl.evaluation.general_options import GeneralOptions
from adapterhub_cl.launching import is_helper_process
from adapterhub_cl.learning.train_options import AddTaskOptions
from adapterhub_cl.options import parse_set
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.spreading.spread_options import SpreadOptions

if TYPE_CHECKING:
    from adapterhub_cl.evaluation.matrix import AccuracyMatrix

MaxForgetting = Annotated[
    float | None, typer.Option(help="how much an earlier task may lose, 0 to 1; default: hub.toml's")
]


@verb(MAKE, "cl-adapter stream tasks.yaml --strategy replay --strategy sequential --seeds 0,1,2 --picture matrix.png")
@takes(SpreadOptions, AddTaskOptions, TrainingSettings, stream=True, config=False)
def stream(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(help="YAML or JSON: tasks: a list of {name, data, eval, …options}")],
    strategy: Annotated[
        list[str] | None, typer.Option(help="may be repeated; default: isolated", autocompletion=strategies)
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="with commas between; default: 0")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="STRATEGY.OPTION=VALUE; may be repeated")] = None,
    max_forgetting: Annotated[
        float | None, typer.Option(help="stop if an earlier task loses more; default: nothing is refused")
    ] = None,
    csv: Annotated[str | None, typer.Option("--csv", help="write the matrices to this file")] = None,
    picture: Annotated[str | None, typer.Option(help="write the matrices as a picture (.png, .svg)")] = None,
    curves: Annotated[str | None, typer.Option(help="write each task's curve as a picture (.png, .svg)")] = None,
    *,
    given: dict[str, Any],
) -> None:
    """Teach a sequence of tasks under one or several strategies; print the accuracy matrix and what was forgotten."""
    session = Session.of(ctx)
    for target in (picture, curves):
        if target is not None and Path(target).suffix.lower() not in (".png", ".svg"):
            raise UsageError(f"a picture is written as .png or .svg, not {target}", "--picture matrix.png")
    from adapterhub_cl.registry import check_local

    for target in (csv, picture, curves):
        if target is not None:
            check_local(target, "a file")  # before hours of training
    started = time.monotonic()
    found = session.hub(write=True).stream(
        file,
        strategies=strategy or ["isolated"],
        seeds=_numbers(seeds),
        options=parse_set(set_ or ()),
        **({} if max_forgetting is None else {"max_forgetting": max_forgetting}),
        reporter=session.reporter(),
        **given,
    )
    if is_helper_process():
        return
    if csv:
        check_local(csv).write_text(_csv(found), encoding="utf-8")
    if picture or curves:
        from adapterhub_cl.reporting.pictures import curves_picture, matrix_picture

        if picture:
            matrix_picture(found, Path(picture))
        if curves:
            curves_picture(found, Path(curves))
    if session.json:
        rows = [one.to_json() for one in found]
        session.give({**rows[0], "runs": rows})
        return
    for one in found[:12]:
        show_matrix(one)
    if len(found) > 1:
        show_summary(found)
    for target in (csv, picture, curves):
        if target:
            session.note(f"wrote {target}")
    took = f"{time.monotonic() - started:.0f} s in all"
    if len(found) > 1:
        place = session.existing() / "streams"
        session.note(f"{took}; each was taught to a hub of its own under {place}; open one with --hub PATH")
    else:
        session.note(f"{took}; next: {session.command(f'forgetting {found[0].tasks[-1]}')}")


@verb(LOOK, "cl-adapter forgetting reviews@v2")
def forgetting(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(help="a version", autocompletion=versions)],
) -> None:
    """Show how a version would change the score of every other task."""
    session = Session.of(ctx)
    hub = session.hub(write=True)  # scores that had to be measured are recorded
    record, effects = hub.forgetting(ref, reporter=session.reporter())
    if session.json:
        session.give({"ref": record.ref, "status": record.status, "effects": [e.to_json() for e in effects]})
        return
    if not effects:
        print(f"{record.ref}: no other task of this hub can be measured")
        return
    show_effects(record.ref, effects)
    if not any(effect.served for effect in effects):
        session.note(f"{record.ref} answers for none of these tasks: what they lose above is what it would cost them")
    elif record.ref not in hub.registry.serving().values():
        session.note(f"next: {session.command(f'promote {record.ref}')} lets it serve, if it passes the gate")


@verb(MOVE, "cl-adapter promote reviews@v2")
@takes(GeneralOptions, config=False)
def promote(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(help="a version", autocompletion=versions)],
    max_forgetting: MaxForgetting = None,
    *,
    given: dict[str, Any],
) -> None:
    """Let a version serve its tasks (alias production), if it passes the gate."""
    session = Session.of(ctx)
    try:
        record, decision = session.hub(write=True).promote(
            ref, max_forgetting=max_forgetting, reporter=session.reporter(), **given
        )
    except GateRefused as refused:
        if not session.json:
            if refused.gate["effects"]:
                show_effects(refused.record.ref, [Effect.from_json(row) for row in refused.gate["effects"]])
            display.show_general(refused.gate)
        raise
    if session.json:
        session.give({**record.to_json(), "gate": decision.to_json()})
        return
    if decision.effects:
        show_effects(record.ref, decision.effects)
    display.show_general(decision.to_json())
    print(f"{record.ref} serves {', '.join(record.tasks)}")
    unmeasured = [task for task in record.tasks if task not in {effect.task for effect in decision.effects}]
    if unmeasured:
        session.note(
            f"nothing to compare with for {', '.join(unmeasured)}: no other version served it, or no data is left"
        )
    if any(effect.answered_by != record.ref for effect in decision.effects):
        session.note(f"to go back: {session.command(f'rollback {record.name}@production')}")


def show_matrix(matrix: AccuracyMatrix) -> None:
    """Print one accuracy matrix and what follows from it."""
    print(f"\n{matrix.title}" + (f"  ({matrix.seconds:.0f} s of training)" if matrix.seconds else ""))
    rows = [
        (f"after {task}", *(None if cell is None else display.value(cell) for cell in row))
        for task, row in zip(matrix.tasks, matrix.rows, strict=True)
    ]
    display.table(("", *matrix.tasks), rows, right=matrix.tasks)
    print("  ".join(f"{name} {shown}" for name, shown in _figures(matrix)))
    if matrix.average_accuracy is None:
        unknown = [task for task, cell in zip(matrix.tasks, matrix.rows[-1], strict=True) if cell is None]
        print(f"no AP: after {matrix.tasks[-1]}, not measured on {', '.join(unknown)}")


def show_summary(found: Sequence[AccuracyMatrix]) -> None:
    """Print mean and standard deviation over the seeds of each strategy."""
    from adapterhub_cl.evaluation.matrix import mean_and_spread

    names = list(dict.fromkeys(one.name for one in found))
    rows = []
    for name in names:
        mine = [one for one in found if one.name == name]
        cells: list[str | None] = []
        for pick in ("average_accuracy", "bwt", "forgetting", "fwt_gem", "seconds"):
            values = [value for one in mine if (value := getattr(one, pick)) is not None]
            mean, spread, _ = mean_and_spread(values) if values else (None, None, 0)
            cells.append(None if mean is None else _spread(mean, spread, pick))
        rows.append((name, len(mine), *cells))
    print()
    display.table(("strategy", "seeds", "AP", "BWT", "forgetting", "FWT", "seconds"), rows, right=("seeds",))


def show_effects(ref: str, effects: Sequence[Effect]) -> None:
    """Print what a version does to tasks."""
    rows = []
    for e in effects:
        low, high = e.interval
        spread = f"{low:+.3f} to {high:+.3f}"
        answers = "yes" if e.served else "no"
        rows.append((e.task, e.answered_by, display.value(e.before), display.value(e.after), f"{e.drop:+.4f}"))
        rows[-1] += (spread, e.n, answers)
    headers = ("task", "compared with", "its score", ref, "drop", "95 % interval", "n", "answers")
    display.table(headers, rows, right=("its score", ref, "drop", "n"))


def _spread(mean: float, spread: float | None, what: str) -> str:
    digits = 0 if what == "seconds" else 3
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _figures(matrix: AccuracyMatrix) -> list[tuple[str, str]]:
    figures = {
        "AP": matrix.average_accuracy,
        "BWT": matrix.bwt,
        "forgetting": matrix.forgetting,
        "FWT": matrix.fwt_gem,
        "any-time": matrix.any_time_average,
    }
    return [(name, display.value(value)) for name, value in figures.items() if value is not None]


def _csv(found: Sequence[AccuracyMatrix]) -> str:
    texts = []
    for one in found:
        head, *body = one.to_csv().splitlines()
        texts += [f"run,{head}"] if not texts else []
        texts += [f'"{one.title}",{line}' for line in body]
    return "\n".join(texts) + "\n"


def _numbers(text: str | None) -> list[int]:
    try:
        found = [int(part) for part in (text or "0").split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text!r} is not a list of whole numbers", "--seeds 0,1,2") from None
    if any(n < 0 for n in found):
        raise UsageError("--seeds must be at least 0", "--seeds 0,1,2")
    return found
