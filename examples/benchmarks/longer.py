"""What ours reaches on the four tasks of cl15's orders 1 to 3 with more passes over the rows and longer texts.

    python examples/benchmarks/longer.py run --base PATH --work /tmp/longer --passes 2 --length 256
    python examples/benchmarks/longer.py table --work /tmp/longer -o docs/benchmarks

Rows, test rows and the other settings are those of `cl15`, whose methods all get one pass at 128 tokens. Each task has
an adapter of its own, so the order of the tasks does not matter. `run` goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "cl15")]  # machine.py, resumable.py, orders.py
from learning import hub_at, routed
from machine import machine, versions
from orders import BUDGETS, COLUMNS, DATA, FOUR, KEPT, count_of, tested, write_data
from resumable import prepare, results

from adapterhub_cl.registry.files import atomic_write_text

BUDGET = BUDGETS["short"]


def run(arguments: argparse.Namespace) -> None:
    """Teach each task, and score the hub when all are there."""
    work, base = Path(arguments.work).resolve(), Path(arguments.base).resolve()
    asked = {"base": "/".join(base.parts[-2:])}
    prepare(work, asked, "hubs")
    write_data(work / "data", FOUR, BUDGET)
    name = f"{arguments.passes}-passes-{arguments.length}-tokens-seed{arguments.seed}"
    path = work / "results" / f"{name}.json"
    if path.exists():
        return
    told = {key: getattr(arguments, key) for key in ("passes", "length", "seed")}
    row = {**asked, **told, **measured(base, work / "hubs" / name, work / "data", **told)}
    atomic_write_text(path, json.dumps({**row, "machine": machine()}))
    print(f"{name}: {fmean(row['whole']):.4f}", flush=True)


def measured(base: Path, folder: Path, data: Path, *, passes: int, length: int, seed: int) -> dict[str, Any]:
    """Accuracies of the four tasks: named, found from the whole prompt, and found from the bare input."""
    hub = hub_at(folder, str(base), "none")
    settings = {**BUDGET.settings(), "max_length": length, "seed": seed}
    known = {record.name for record in hub.list()}
    for task in FOUR:
        if task not in known:
            files = {"data": data / f"{task}.train.jsonl", "eval": data / f"{task}.test.jsonl", "columns": COLUMNS}
            epochs = BUDGET.epochs(count_of(data, task)) * passes
            record = hub.add_task(task, **files, replay=f"balanced:{KEPT}", epochs=epochs, **settings)
            print(f"{task}: {record.metrics['accuracy']:.4f}", flush=True)
    records = [hub.get(task) for task in FOUR]
    tests = {task: tested(data, task) for task in FOUR}
    with hub.engine(fallback=False, max_length=length) as engine:
        whole, bare = (routed(engine, tests, FOUR, whole=form) for form in (True, False))
    return {
        "named": [record.metrics["accuracy"] for record in records],
        "whole": [whole[task][0] for task in FOUR],
        "bare": [bare[task][0] for task in FOUR],
        "seconds": sum(record.training["seconds"] for record in records),
    }


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page as Markdown."""
    lines = [
        "# More passes and longer texts",
        "",
        f"{rows[0]['machine']}. {versions('torch', 'transformers', 'peft', 'adapterhub-cl')}. Written by "
        f"`examples/benchmarks/longer.py`. Base `{rows[0]['base']}`.",
        "",
        "Ours learns the four tasks of orders 1 to 3 of [cl15](cl15.md) with its rows and settings, but with more "
        "passes over the rows and longer texts than the methods there have. *AP* is the mean accuracy over the four "
        f"tasks, on {BUDGET.test_rows:,} test rows of a task at most.",
        "",
        "| passes | tokens | " + " | ".join(FOUR) + " | AP, task not named, whole prompt | AP, bare input "
        "| AP, task named | seeds | training |",
        "|---|---|" + "---|" * (len(FOUR) + 5),
    ]
    for passes, length in sorted({(row["passes"], row["length"]) for row in rows}):
        found = [row for row in rows if (row["passes"], row["length"]) == (passes, length)]
        tasks = [f"{100 * fmean(row['whole'][k] for row in found):.1f}" for k in range(len(FOUR))]
        aps = [_spread([fmean(row[form]) for row in found]) for form in ("whole", "bare", "named")]
        cells = [passes, length, *tasks, *aps, len(found), f"{fmean(row['seconds'] for row in found) / 60:.0f} min"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "<!-- not run: takes an hour, and the real texts and model -->", "```console"]
    lines += [
        f"$ python examples/benchmarks/longer.py run --base MODEL --work longer-work --passes {row['passes']} "
        f"--length {row['length']} --seed {row['seed']}"
        for row in rows
    ]
    lines += ["$ python examples/benchmarks/longer.py table --work longer-work -o docs/benchmarks", "```"]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f}"


def table(arguments: argparse.Namespace) -> None:
    rows, out = results(Path(arguments.work)), Path(arguments.output)
    atomic_write_text(out / "longer.md", page(rows))
    atomic_write_text(out / "longer.json", json.dumps(rows) + "\n")
    print(page(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    going = verbs.add_parser("run")
    going.add_argument("--base", required=True, help="folder of an encoder")
    going.add_argument("--passes", type=int, default=1, help="times the passes of cl15 (default: 1)")
    going.add_argument("--length", type=int, default=128, help="tokens of a text at most (default: 128)")
    going.add_argument("--seed", type=int, default=0)
    going.set_defaults(do=run)
    shown = verbs.add_parser("table")
    shown.add_argument("-o", "--output", required=True, help="folder for longer.md and longer.json")
    shown.set_defaults(do=table)
    for verb in (going, shown):
        verb.add_argument("--work", required=True, help="folder for hubs and results")
    arguments = parser.parse_args()
    if arguments.verb == "run" and not DATA.is_dir():
        sys.exit(f"the texts are not there: {DATA}")
    arguments.do(arguments)


if __name__ == "__main__":
    main()
