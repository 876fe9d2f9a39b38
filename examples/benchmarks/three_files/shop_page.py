"""The page of what was measured on the three files."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from shop_methods import BATCH, DEV, EPOCHS, OURS, RATES
from shop_rows import FILES
from shop_scores import difference, interval, mean

METHODS = {
    "ours": "**ours**, defaults",
    "ours-told": "**ours**, `--instruction`",
    "trl-bf16": "TRL, bf16",
    "trl-fp32": "TRL, fp32",
}
ABOUT = f"""\
A new user has an instruct model and three files. **Ours** is `cl-adapter init HUB --base MODEL`, then
`cl-adapter add-task NAME FILE`, without any other option: the base is kept in NF4, and a tenth of the rows chooses the
epoch. **TRL** is a script by hand around SFTTrainer (`examples/benchmarks/three_files/trl_script.py`), in an
environment of its own: LoRA of rank 16 and alpha 32 on all linear layers, the loss on the assistant's answers only, the
model's chat template, batches of {BATCH}, {EPOCHS} epochs, a cosine schedule with 5 % warm-up, no quantisation. Its
learning rate is the best of {", ".join(f"{rate:g}" for rate in RATES)} on the last {DEV} training rows with seed 0;
then it learns all rows. The script also says what is wanted before each ticket (with the names of the queues) and each
e-mail; our user says nothing, and `add-task` asks for the keys of the e-mails' objects of itself. (*Ours,
`--instruction`*, where it was run, is given the script's words.) Both answer greedily, except that ours picks the most
probable of the labels that it saw in the file, where TRL's answer is a free text that counts if it is exactly the
label.

All texts are invented. **Tickets** (CSV, six queues) have typing errors and asides about another queue, and 4 % of the
training labels are wrong. **E-mails** (JSONL) are turned into an object with name, order, product, date and wish.
**Conversations** (JSONL, `messages`) have one to five answers of a shop that follow rules; each answer of a test
conversation is asked for with the right answers before it. Half of the tickets to be tested, and half of the
customers' questions in test conversations, are worded as in no training row; each name and product of a test e-mail is
a new one in a third of the cases.

No test row has a part in any choice. Each seed draws its own rows. Field F1 counts a field as right if
name and value are; `exact JSON` wants the whole object. Intervals are at 95 % over all answers of all seeds: Wilson's
for shares, resampled rows for means and differences.
"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of all runs."""
    first = rows[0]
    base = first["base"].rstrip("/").rsplit("/", 1)[-1]
    machines = "; ".join(sorted({row["machine"] for row in rows}))
    lines = ["# A new user's three files", "", f"Base: `{base}`. {machines}."]
    lines.append(f"{first['rows']} training rows and {first['tests']} test rows of each file and seed.")
    for method in present(rows):
        versions = next(row["versions"] for row in rows if row["method"] == method)
        if method in ("ours", "trl-bf16"):
            lines.append(f"{METHODS[method]}: {', '.join(f'{name} {text}' for name, text in versions.items())}.")
    lines += ["", ABOUT]
    lines += ["## Scores", "", "| file | score | method | mean | 95 % interval | seeds |", "|---|---|---|---|---|---|"]
    lines += list(scores(rows))
    if both := list(differences(rows)):
        lines += ["", "## Ours less TRL, on the same rows", ""]
        lines += [
            "| file | score | ours | TRL | difference | 95 % interval | answers |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += both
    if waits := [FILES[file] for file in FILES if not any(r["file"] == file and r["method"] not in OURS for r in rows)]:
        lines += ["", f"TRL was not run yet on {', '.join(waits)}."]
    lines += ["", "## What it costs", "", COST, ""]
    lines += ["| file | method | CPU | clock | CPU of the search | peak memory |", "|---|---|---|---|---|---|"]
    lines += list(costs(rows))
    if searched := list(rates(rows)):
        lines += ["", "TRL's learning rates: score on the rows that choose, with seed 0.", ""]
        lines += ["| file | method | " + " | ".join(f"{rate:g}" for rate in RATES) + " | chosen |"]
        lines += ["|---|---|" + "---|" * (len(RATES) + 1), *searched]
    lines += [
        "",
        "## Again",
        "",
        "<!-- not run: takes hours, and a real model -->",
        "```console",
        "$ python -m venv trl-env",
        "$ python -m pip --python trl-env/bin/python install torch==2.13.0",
        "$ python -m pip --python trl-env/bin/python install trl==1.16.0 peft transformers datasets",
        "$ python examples/benchmarks/three_files run --base MODEL --trl-python trl-env/bin/python --work three-work",
        "$ python examples/benchmarks/three_files table --work three-work -o docs/benchmarks",
        "```",
    ]
    return "\n".join(lines) + "\n"


COST = """\
Means over the seeds of the whole command: `add-task` with its kind, its training, its scores for the gate and its
replay samples; the script with its training and its answers to the test rows. The machine did other work at the same
time, and processes were stopped for minutes while others were measured, so the CPU seconds say more than the clock."""


def present(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [method for method in METHODS if any(row["method"] == method for row in rows)]


def groups(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(file, method, its runs in the order of their seeds)."""
    for file in FILES:
        for method in present(rows):
            found = [row for row in rows if (row["file"], row["method"]) == (file, method)]
            if found:
                yield file, method, sorted(found, key=lambda row: int(row["seed"]))


def pooled(runs: Sequence[dict[str, Any]], score: str) -> list[float]:
    return [value for row in runs for value in row["values"][score]]


def scores(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for file, method, runs in groups(rows):
        for score in runs[0]["values"]:
            values = pooled(runs, score)
            cells = [FILES[file], score, METHODS[method], f"{mean(values):.3f}", span(interval(values)), str(len(runs))]
            yield f"| {' | '.join(cells)} |"


def differences(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Of the seeds that both have."""
    found = {(file, method): {row["seed"]: row for row in runs} for file, method, runs in groups(rows)}
    for file, mine, other in product(FILES, OURS, [name for name in METHODS if name not in OURS]):
        ours, theirs = found.get((file, mine), {}), found.get((file, other), {})
        both = sorted(ours.keys() & theirs.keys())
        for score in theirs[both[0]]["values"] if both else ():
            a, b = (pooled([runs[seed] for seed in both], score) for runs in (ours, theirs))
            cells = [FILES[file], score, METHODS[mine], METHODS[other], f"{mean(a) - mean(b):+.3f}"]
            yield f"| {' | '.join([*cells, span(difference(a, b), '+'), str(len(a))])} |"


def costs(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for file, method, runs in groups(rows):
        search = sum(found["cpu_seconds"] for row in runs for found in row.get("searched", {}).values())
        cells = [
            FILES[file],
            METHODS[method],
            f"{statistics.fmean(row['cpu_seconds'] for row in runs):.0f} s",
            f"{statistics.fmean(row['wall_seconds'] for row in runs):.0f} s",
            f"{search:.0f} s" if search else "–",
            f"{max(row['peak_mb'] for row in runs):,.0f} MB",
        ]
        yield f"| {' | '.join(cells)} |"


def rates(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for file, method, runs in groups(rows):
        if searched := runs[0].get("searched"):
            cells = [f"{searched[str(rate)]['dev']:.3f}" for rate in RATES]
            yield f"| {FILES[file]} | {METHODS[method]} | {' | '.join(cells)} | {runs[0]['rate']:g} |"


def span(ends: tuple[float, float], sign: str = "") -> str:
    return " to ".join(f"{end:{sign}.3f}" for end in ends)
