"""NAME.md and NAME.json of what settings.py measured: each arm against one of them, and the scores of each task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from machine import machine, versions

NAMES = ("torch", "transformers", "peft")
HEAD = "| arm | pairs | loss | from | to | score | from | to | base | time |"


def page(
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str,
    title: str,
    note: str,
    against: str,
    arms: Sequence[str],
    tasks: Sequence[str],
    free: Sequence[str],
) -> str:
    """The page as Markdown: one table for each number of rows.

    Args:
        name: of the page's file.
        note: what a reader of these rows must know; put below the machine.
        against: the arm that the others are compared with.
        arms, tasks: all that there are, in the order of the tables.
        free: the tasks that are scored by ROUGE-L.
    """
    free = [task for task in free if any(row["task"] == task for row in rows)]
    others = "the share of right answers for the others" if free else "the share of right answers"
    scored = f"ROUGE-L for {', '.join(free)} and {others}" if free else others
    lines = [
        f"# {title}",
        "",
        "; ".join(dict.fromkeys(row.get("machine") or here() for row in rows)) + ".",
        "",
        *([note, ""] if note else []),
        "No test row is read. Each arm changes one thing of the defaults, and its difference to the arm "
        f"*{against}* is taken on the same task, seed and rows. **Loss** is that of an answer token (on an "
        "encoder: the label), in nats, on rows that were not learned: below 0 is better. **Score** is "
        f"{scored}, in points: above 0 is better. The 95 % intervals are over the pairs of a task and a seed; one that "
        "contains 0 may be chance. **Base** is how much the loss on general text rises.",
    ]
    counts = sorted({row["rows"] for row in rows})
    for count in counts:
        own = [row for row in rows if row["rows"] == count]
        lines += ["", f"## {count} rows of each task", "", *_tables(own, against, arms, tasks)]
    lines += ["", "<!-- not run: takes hours, and the real texts and model -->", "```console"]
    lines += [_command([row for row in rows if row["rows"] == count], count, arms, tasks) for count in counts]
    lines += [
        "$ python examples/benchmarks/settings.py table --work settings-work -o docs/benchmarks "
        f'--name {name} --against "{against}"',
        "```",
    ]
    return "\n".join(lines) + "\n"


def here() -> str:
    return f"{machine()}, {versions(*NAMES)}"


def _command(rows: Sequence[Mapping[str, Any]], count: int, arms: Sequence[str], tasks: Sequence[str]) -> str:
    """What makes these rows."""
    found = {
        of: "; ".join(one for one in every if any(row[of] == one for row in rows))
        for of, every in (("task", tasks), ("arm", arms))
    }
    return (
        f"$ python examples/benchmarks/settings.py run --base MODEL --work settings-work --rows {count} "
        f'--tasks "{found["task"]}" --arms "{found["arm"]}" --seeds {1 + max(row["seed"] for row in rows)}'
    )


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval (Student's t over pairs of a task and a seed)."""
    from scipy import stats

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def _signed(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:+.{digits}f}"


def _tables(rows: Sequence[Mapping[str, Any]], against: str, arms: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """Each arm against one of them, and the scores of each task."""
    scores = {(r["arm"], r["task"], r["seed"]): r for r in rows}
    tasks = [task for task in tasks if any(r["task"] == task for r in rows)]
    lines = [
        HEAD,
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        keys = [key for key in scores if key[0] == arm and (against, *key[1:]) in scores]
        if not keys:
            continue
        pairs = [(scores[key], scores[against, key[1], key[2]]) for key in keys]
        cells = [arm, str(len(keys))]
        if arm == against:
            cells += [f"{statistics.fmean(r['loss'] for r, _ in pairs):.3f}", "–", "–"]
            cells += [f"{100 * statistics.fmean(r['score'] for r, _ in pairs):.1f}", "–", "–"]
        else:
            losses = [r["loss"] - usual["loss"] for r, usual in pairs if "loss" in r]
            cells += [_signed(end, 3) for end in interval(losses)] if losses else ["–"] * 3
            cells += [_signed(end, 1) for end in interval([100 * (r["score"] - usual["score"]) for r, usual in pairs])]
        rises = [r["base_rise"] for r, _ in pairs if r.get("base_rise") is not None]
        cells.append(f"{statistics.fmean(rises):+.2f}" if rises else "–")
        cells.append(f"{statistics.median(r['seconds'] / usual['seconds'] for r, usual in pairs):.2f} ×")
        lines.append(f"| {' | '.join(cells)} |")
    for what, of in (("Scores", "score"), ("Losses", "loss")):
        lines += ["", f"{what} of each task (mean over the seeds):", "", "| arm | " + " | ".join(tasks) + " |"]
        lines += ["|---|" + "---|" * len(tasks)]
        for arm in arms:
            mine = [[r[of] for r in rows if (r["arm"], r["task"]) == (arm, task) and of in r] for task in tasks]
            told = [
                f"{(100 if of == 'score' else 1) * statistics.fmean(f):.{1 if of == 'score' else 3}f}" if f else "–"
                for f in mine
            ]
            if any(mine):
                lines.append(f"| {arm} | {' | '.join(told)} |")
    return lines
