"""`tune`: the training settings of a task, searched on rows held out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import MAKE, verb
from cl_adapter.flags import takes
from cl_adapter.session import Session
from cl_adapter.verbs_learn import Data

from adapterhub_cl.errors import UsageError, count
from adapterhub_cl.learning.chosen_settings import in_words
from adapterhub_cl.learning.train_options import AddTaskOptions
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.spreading.spread_options import SpreadOptions
from adapterhub_cl.tuning.tune_options import NOT_SHOWN, TuneOptions


@verb(MAKE, "cl-adapter tune news train.jsonl --trials 20 --minutes 30\ncl-adapter tune news --resume")
@takes(TuneOptions, SpreadOptions, AddTaskOptions, TrainingSettings, hidden=NOT_SHOWN)
def tune(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="the task's name")],
    data: Data = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the newest unfinished search")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be searched; write nothing")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="forget what was chosen before: back to the defaults")] = False,
    *,
    given: dict[str, Any],
) -> None:
    """Search rank, learning rate, epochs and target modules for a task, and its prompt format if asked.

    Later trainings begin with what was found.
    """
    session = Session.of(ctx)
    hub = session.hub(write=True)
    if drop:
        if data is not None or resume or dry_run or given:
            raise UsageError("--drop goes with a name alone", f"cl-adapter tune {name} --drop")
        there = hub.drop_tuned(name)
        if session.json:
            session.give({"name": name, "dropped": there})
        else:
            print(f"{name} has the defaults again" if there else f"nothing was tuned for {name}")
        return
    if dry_run:
        planned = hub.tune(name, data, resume=resume, dry_run=True, reporter=session.reporter(), **given)
        if session.json:
            session.give(asdict(planned))
            return
        print(
            f"{planned.trials} trials on {planned.rows} rows, judged on {planned.judged} others, confirmed on "
            f"{planned.confirmed} others"
        )
        for setting, values in planned.searched.items():
            ends = f"{values[0]} to {values[-1]}" if setting == "learning_rate" else ", ".join(map(str, values))
            print(f"  {setting.replace('_', ' ')}: {ends}; default {planned.default[setting]}")
        print("nothing was written")
        return
    found = hub.tune(name, data, resume=resume, reporter=session.reporter(), **given)
    if session.json:
        session.give(found)
        return
    show_tuned(found)
    session.note(f"next: {session.command(f'add-task {name} DATA.jsonl')}")


def show_tuned(found: dict[str, Any]) -> None:
    """The trials, the best first, and what was kept."""
    ranked = sorted(found["trials"], key=_rank)
    names = list(found["searched"])
    display.table(
        ("trial", *(name.replace("_", " ") for name in names), "accuracy", "loss", "time", "state"),
        [
            (
                t["number"],
                *(_value(t["settings"][name]) for name in names),
                _value(t["figures"].get("accuracy")),
                _value(t["figures"].get("loss")),
                display.duration(t["seconds"]),
                "defaults" if t["number"] == found["default_trial"] else t["state"],
            )
            for t in ranked
        ],
        right=("trial", "rank", "epochs", "learning rate", "accuracy", "loss", "time"),
    )
    if check := found["confirmed"]:
        print(
            f"confirmed on {check['rows']} other rows with {count(check['seeds'], 'other seed')}: "
            f"{check['measure']} "
            f"{check['best']:.4f}, the defaults {check['default']:.4f} "
            f"(lead {check['lead']:.4f} ± {check['error']:.4f})"
        )
    print(f"kept for {found['name']}: {in_words(found['settings']) or found['kept']}")


def _value(value: Any) -> str | None:
    return f"{value:.4g}" if isinstance(value, float) else None if value is None else str(value)


def _rank(trial: dict[str, Any]) -> tuple[bool, float, float]:
    figures = trial["figures"]
    return trial["state"] != "complete", -figures.get("accuracy", 0.0), figures.get("loss", 0.0)
