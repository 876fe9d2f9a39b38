"""The page of what was measured on a language model."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from machine import remarks
from streams import FREE, STREAMS

Run = Mapping[str, Any]
TITLES = {
    "superni": "Seven tasks of Super-NaturalInstructions",
    "order1": "cl15, order 1",
    "order2": "cl15, order 2",
    "order3": "cl15, order 3",
    "order4": "cl15, order 4: fifteen tasks",
    "families": "cl15: four tasks of reviews and three of inference",
}
WAYS = {"scores": "whole", "bare": "bare"}
# These have an adapter a task; the others have one for all.
ISOLATED = {
    "ours": "**ours**",
    "kin": "**ours, `--strategy kin`**",
    "chosen": "**ours, more steps**",
    "kin-chosen": "**ours, `--strategy kin`, more steps**",
}
OTHERS = {
    "multitask-chosen": "multitask, more steps",
    "der-chosen": "der, more steps",
}
MORE = """ The same is so for
  `--strategy multitask` and `--strategy der` where they have *more steps*; multitask then takes batches of 8."""
ABOUT = """\
Every method learns the same rows of each task with the default settings of `add-task` (the learning rate follows the
base's width), the same number of epochs in batches of 16, and the chat template; no rows are held out, and nothing was
tuned on test rows. Free answers are scored by ROUGE-L against the closest right answer, choices by the share of right
ones. **AP** is the mean score over all tasks at the end.

- *Ours* teaches each task to an adapter of its own and is measured three ways: **named** (the user says which task it
  is), **routed, whole prompt** and **routed, bare input** (the router finds the task, from the prompt with its
  instruction or from the input alone).
- *ours, more steps* is what `add-task` does of itself: it makes six passes over few rows of a choice task, and learns
  few rows with free answers in batches of 8 or 4.{more}
- *kin* is ours with another start: where an earlier task's adapter beats a fresh one in a race, the new task's
  adapter begins as a copy of it.
- All other methods have one adapter, and each task is named. `replay`, `der` and `forever` keep 16 rows of each task.
- *merged* is one adapter of the rank of ours, made of all of ours by a merge of weights that reads no rows.
- *distilled* is the one adapter that `distill` makes of ours. It has the same rows, but passes over them eight times,
  which is its default, and chooses its best epoch on a tenth of them.

**BWT** is the mean change of a task's score since it was learned. **Base** is how much the loss on general text rises,
in nats per token: of ours the mean over its adapters, each of which answers for its own task only. `training` is the
time of the optimiser's steps, on a machine that did other work as well.
"""


def page(rows: Sequence[Run]) -> str:
    """Markdown of all streams that have runs, those of each budget by themselves."""
    base, quantization = rows[0]["base"].rstrip("/").rsplit("/", 1)[-1], rows[0]["quantization"]
    machines = "; ".join(dict.fromkeys(row["machine"] for row in rows))
    about = ABOUT.format(more=MORE if any(row["method"] == "multitask-chosen" for row in rows) else "")
    lines = ["# Continual learning on a language model", ""]
    lines += [f"Base: `{base}`, quantisation {quantization}. {machines}.", "", about, *remarks(rows)]
    budgets = list(dict.fromkeys(budget_of(row) for row in rows))
    for stream in STREAMS:
        for budget in budgets:
            found = [row for row in rows if row["stream"] == stream and budget_of(row) == budget]
            if found:
                lines += section(stream, found, budget)
    lines += ["## Again", "", "<!-- not run: takes hours, and the real texts and model -->", "```console"]
    works = [f"llm-work-{number}" for number in range(1, len(budgets) + 1)]
    for work, (taught, tests, epochs, _) in zip(works, budgets, strict=True):
        lines.append(
            f"$ python examples/benchmarks/llm run --base MODEL --work {work} --rows {taught} "
            f"--test-rows {tests} --epochs {epochs}"
        )
    lines += [f"$ python examples/benchmarks/llm table --work {','.join(works)} -o docs/benchmarks", "```"]
    return "\n".join(lines) + "\n"


def budget_of(row: Run) -> tuple[int, int, int, int]:
    """Training rows and test rows of a task, epochs, and tokens of an example at most."""
    return row["rows"], row["tests"], row["epochs"], row["max_length"]


def section(stream: str, rows: Sequence[Run], budget: tuple[int, int, int, int]) -> list[str]:
    """The two tables of a stream: all methods, and each task."""
    taught, tests, epochs, length = budget
    each = f"{taught} training rows and {tests} test rows of a task at most"
    said = f"{each}, {epochs} epochs, {length} tokens at most." + by_chance(rows, tests)
    lines = [f"## {TITLES[stream]}, {taught} rows each", "", said, ""]
    lines += ["| method | AP | BWT | base | training | peak memory | seeds |", "|---|---|---|---|---|---|---|"]
    shown: list[tuple[float, str]] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == method]
        forms = {"scores": title_of(method)}
        if title := ISOLATED.get(method):
            forms = {"oracle": f"{title}, named", "scores": f"{title}, routed, whole prompt"}
            forms["bare"] = f"{title}, routed, bare input"
        for key, title in forms.items():
            aps = [statistics.fmean(row[key]) for row in found]
            cells = [
                title,
                spread(aps),
                spread(row["bwt"] for row in found if "bwt" in row),
                nats(row["base_rise"] for row in found if "base_rise" in row),
                minutes(row["train_seconds"] for row in found if "train_seconds" in row),
                f"{max(row['peak_mb'] for row in found):,} MB",
                str(len(found)),
            ]
            shown.append((-statistics.fmean(aps), "| " + " | ".join(cells) + " |"))
    lines += [line for _, line in sorted(shown)]
    for method, title in ISOLATED.items():
        if found := [row for row in rows if row["method"] == method]:
            lines += ["", f"| {title} | % |", "|---|---|"]
        for form, key in (("whole prompt", "scores"), ("bare input", "bare")) if found else ():
            kept = (statistics.fmean(row[key]) / statistics.fmean(row["oracle"]) for row in found)
            lines.append(f"| of the score with the task named ({form}) | {spread(kept)} |")
            lines.append(f"| right task found ({form}) | {spread(row['routing'][WAYS[key]] for row in found)} |")
    names = STREAMS[stream]
    lines += ["", "Score of each task at the end (mean over the seeds; ROUGE-L is marked *):", ""]
    lines += [
        "| method | " + " | ".join(f"{n}*" if n in FREE else n for n in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == method]
        named = [("oracle", f"{method}, named")] if method in ISOLATED else []
        for key, title in (*named, ("scores", method)):
            cells = [f"{100 * statistics.fmean(row[key][k] for row in found):.1f}" for k in range(len(names))]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return [*lines, "", *helpers([row for row in rows if row.get("helped")])]


def title_of(method: str) -> str:
    """Of a method with one adapter for all tasks."""
    if method.startswith("merged-"):
        return f"ours, merged by `{method.removeprefix('merged-')}`"
    return OTHERS.get(method, method)


def by_chance(rows: Sequence[Run], tests: int) -> str:
    """How well one run's AP is known, from the binomial spread of its right answers; of choice tasks only."""
    if any(task in FREE for task in STREAMS[rows[0]["stream"]]):
        return ""
    scores = next((row for row in rows if row["method"] == "ours"), rows[0])["scores"]
    error = sum(share * (1 - share) / tests for share in scores) ** 0.5 / len(scores)
    return f" With {tests * len(scores)} answers, one run's AP is known to ±{196 * error:.1f} points (95 %)."


def helpers(rows: Sequence[Run]) -> list[str]:
    """Which task's adapter another task's adapter began as."""
    counts = Counter(
        (task, " + ".join(ref.partition("@")[0] for ref in parents))
        for row in rows
        for task, parents in row["helped"].items()
    )
    if not counts:
        return []
    lines = ["| task that kin helped | it began as | seeds |", "|---|---|---|"]
    return [*lines, *(f"| {task} | {parents} | {times} |" for (task, parents), times in sorted(counts.items())), ""]


def spread(values: Iterable[float]) -> str:
    """Percent: mean ± standard deviation over the seeds."""
    found = [100 * value for value in values]
    if not found:
        return "–"
    mean = f"{statistics.fmean(found) + 0.0:.1f}"
    return mean if len(found) == 1 else f"{mean} ± {statistics.stdev(found):.1f}"


def nats(values: Iterable[float]) -> str:
    found = list(values)
    return f"{statistics.fmean(found):+.2f}" if found else "–"


def minutes(values: Iterable[float]) -> str:
    found = [value / 60 for value in values]
    return f"{statistics.fmean(found):.1f} min" if found else "–"
