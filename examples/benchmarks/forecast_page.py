"""forecast.md and forecast.json: how good the forecasts are, stream by stream and step by step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from forecast_fit import LEAST_COVERAGE, LEAST_RHO, ROOM, figures, judged, reached, room_of
from forecast_streams import BEGINNINGS, CHOSEN_ON, STREAMS
from machine import machine, versions

# What a forecast may look at → its features.
THE_MODEL = "the model in use"
VIEWS: Mapping[str, Sequence[str]] = {
    THE_MODEL: (),
    "what the score has lost already": ("lost",),
    "the likelihood of the gate's rows": ("room x unlikely",),
    "the loss on samples": ("room", "room x halved", "room x rise"),
    "the divergence on new rows": ("room x moved",),
    "the data alone, before the first step": (
        "room", "room x nearness", "room x overlap", "room x path", "room x reviewed",
    ),
    "the score above chance": ("room",),
}  # fmt: skip


def page(
    found: Sequence[Mapping[str, Any]], others: Mapping[float, Sequence[Mapping[str, Any]]]
) -> tuple[str, dict[str, Any]]:
    """The page as Markdown, and its figures.

    Args:
        found: all steps.
        others: share of the training → the same steps with the signs that were read then.
    """
    from adapterhub_cl.forecasting.early_signs import SHARE

    views = {name: judged(found, names) for name, names in VIEWS.items()}
    rows = views[THE_MODEL]
    told = {name: figures(own) for name, own in views.items()}
    for share, own in others.items():
        if share != SHARE:
            told[f"the model in use, after {share:.0%} of the training"] = figures(judged(own))
    best = told[THE_MODEL]
    rich = [row for row in rows if room_of(row) >= ROOM]
    fresh = [row for row in rows if row["stream"] not in CHOSEN_ON]
    parts = {
        f"the same, the {len(fresh)} steps of streams that its form was not chosen on": figures(fresh),
        f"the same, {len(rich)} steps {ROOM} or more above chance": figures(rich),
    }
    verdict = (
        f"The aim, a rank correlation of {LEAST_RHO} and a coverage of {LEAST_COVERAGE:.0%}, is "
        f"{'reached' if reached(best) else 'not reached'}: {best['spearman']:.2f} and {best['coverage']:.0%}."
    )
    lines = [
        "# Forecasts of forgetting",
        "",
        f"{machine()}. {versions('torch', 'transformers', 'peft')}.",
        "",
        f"{best['steps']} steps in {best['streams']} streams; a step is one earlier task in one training. An encoder "
        "(MiniLM) learned tasks of cl15 from 96 or 128 rows each, scored on 120 or 200 other training rows; the "
        "embedded base learned the demo's tasks. Each forecast was made after "
        f"{SHARE:.0%} of the training's steps, by a model that was fitted to the other streams alone; streams that "
        "begin with the same hub are left out together. The gate then measured what the task really lost.",
        "",
        f"{verdict} What the model looks at, when, and on how many rows was chosen on {len(CHOSEN_ON)} of the streams; "
        "the others were measured afterwards and have a row of their own. The streams themselves were chosen before, "
        "for earlier tasks that have something to lose. Drops are measured on few rows: one of 0.05 on 120 rows may be "
        "chance. The forecast looks at the very same rows, so it foretells that chance too, as it does for a user.",
        "",
        "| a forecast from | rank correlation | coverage of 90 % intervals | mean error | mean width |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {one['spearman']:.2f} | {one['coverage']:.0%} | {one['mean_error']:.3f} | {one['width']:.2f} |"
            for name, one in {**told, **parts}.items()
        ),
        "",
        "## Streams",
        "",
        "| stream | base | strategy | begins with | steps | mean drop | mean forecast | mean error | coverage |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_stream(name, [row for row in rows if row["stream"] == name]) for name in dict.fromkeys(
            row["stream"] for row in rows
        )),
        "",
        "## Every step",
        "",
        "| stream | learned | earlier task | score before | forecast | from | to | drop | in the interval |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['stream']} | {r['learned']} | {r['task']} | {r['before']:.3f} | {r['foretold']:.3f} | "
            f"{r['low']:.3f} | {r['high']:.3f} | {r['drop']:.3f} | "
            f"{'yes' if r['low'] <= r['drop'] <= r['high'] else 'no'} |"
            for r in rows
        ),
        "",
        "<!-- not run: takes half an hour of processor time, and the real texts and model -->",
        "```console",
        "$ python examples/benchmarks/forecast.py run --encoder MODEL --work forecast-work --shares 0.2",
        "$ python examples/benchmarks/forecast.py fit --work forecast-work",
        "$ python examples/benchmarks/forecast.py table --work forecast-work -o docs/benchmarks",
        "```",
    ]  # fmt: skip
    row = {
        "figures": {**told, "not chosen on": figures(fresh), "something to lose": figures(rich)},
        "aim_reached": reached(best),
        "steps": rows,
    }
    return "\n".join(lines) + "\n", row


def _stream(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    stream = STREAMS[name]
    shown = ", ".join(BEGINNINGS[stream.begin][1]) if stream.begin else "–"
    told = figures(rows)
    means = [statistics.fmean(row[key] for row in rows) for key in ("drop", "foretold")]
    cells = [name, stream.base, stream.strategy, shown, len(rows)]
    cells += [f"{mean:.3f}" for mean in means] + [f"{told['mean_error']:.3f}", f"{told['coverage']:.0%}"]
    return f"| {' | '.join(map(str, cells))} |"
