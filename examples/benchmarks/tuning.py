"""What `tune` gains over the defaults, and how many settings it tries in an hour.

    python examples/benchmarks/tuning.py run --base PATH --work /tmp/tuning
    python examples/benchmarks/tuning.py table --work /tmp/tuning -o docs/benchmarks

`tune` searches the settings of each task of cl15 (../shared/data) on its training rows. The defaults and the best
settings that were found are then trained with three seeds and scored on test rows, which no search reads. The best
settings are scored even where `tune` keeps the defaults, because their lead may be chance. `run` goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.append(str(Path(__file__).parent))  # cl15_rows.py, machine.py, resumable.py
from cl15_rows import DATA, write_rows
from machine import machine, versions
from resumable import chosen, prepare, results

from adapterhub_cl import AdapterHub
from adapterhub_cl.registry.files import atomic_write_text

TASKS = ("agnews", "sst2", "yahoo", "qqp", "boolq")
SEEDS = (10, 11, 12)  # none of those that a search uses
LENGTH = 128
FIXED: dict[str, Any] = {"max_length": LENGTH, "replay": "none", "dev_share": 0.0}


def scores(hub: AdapterHub, name: str, train: Path, test: Path, settings: Mapping[str, Any]) -> list[float]:
    """Accuracy on the test rows with each seed."""
    found = []
    for seed in SEEDS:
        task = f"{name}-{seed}"
        known = {record.name for record in hub.list()}
        record = (
            hub.get(task) if task in known else hub.add_task(task, train, eval=test, seed=seed, **FIXED, **settings)
        )
        found.append(float(record.metrics["accuracy"]))
    return found


def run(arguments: argparse.Namespace) -> None:
    """Search, train and score task by task."""
    work, base = Path(arguments.work).resolve(), Path(arguments.base).resolve()
    asked = {
        "base": "/".join(base.parts[-2:]),
        "rows": arguments.rows,
        "tests": arguments.test_rows,
        "trials": arguments.trials,
    }
    prepare(work, asked, "hubs")
    for task in chosen(arguments.tasks, TASKS):
        path = work / "results" / f"{task}.json"
        if path.exists():
            continue
        train, test = write_rows(work / "rows", task, arguments.rows, arguments.test_rows)
        folder = work / "hubs" / task
        new = not (folder / "hub.toml").exists()
        hub = AdapterHub.init(folder, base=str(base), quantization="none") if new else AdapterHub.open(folder)
        started = time.monotonic()
        told = hub.tune(task, train, trials=arguments.trials, max_length=LENGTH)
        seconds = time.monotonic() - started
        default = scores(hub, f"{task}-default", train, test, told["default"])
        best = scores(hub, f"{task}-best", train, test, told["best"]) if told["best"] != told["default"] else default
        row = {"task": task, **asked, "seconds": seconds, "told": told, "default": default, "best": best}
        atomic_write_text(path, json.dumps({**row, "machine": machine()}))
        print(f"{task}: {told['kept']}; test {fmean(default):.4f} and {fmean(best):.4f} in {seconds:.0f} s", flush=True)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page as Markdown."""
    one = rows[0]
    leads = [100 * (b - a) for row in rows for a, b in zip(row["default"], row["best"], strict=True)]
    tried = sum(len(row["told"]["trials"]) for row in rows)
    hours = sum(row["seconds"] for row in rows) / 3600
    lines = [
        "# What tune gains",
        "",
        f"{one['machine']}. "
        + versions("torch", "transformers", "optuna", "adapterhub-cl")
        + f". Written by `examples/benchmarks/tuning.py`. Base `{one['base']}`.",
        "",
        f"`tune` tried at most {one['trials']} settings of each task on {one['rows']} training rows, the defaults "
        "first, and confirmed the best with two further seeds. Then the defaults and the best settings were trained "
        f"on all {one['rows']} rows with three other seeds, and scored on {one['tests']} test rows. *Lead* is that of "
        "the best settings there, whatever `tune` kept. Accuracies in %, with their standard deviation over the seeds.",
        "",
        f"Over all tasks and seeds, the best settings lead by {fmean(leads):.1f} points, with a standard error of "
        f"{stdev(leads) / len(leads) ** 0.5:.1f} ({len(leads)} pairs). `tune` made {tried / hours:.0f} trials an hour, "
        "the confirmations included in the time, on one core beside other work.",
        "",
        "| task | kept | best settings, where they differ from the defaults | trials | time | defaults | best | lead |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        told = row["told"]
        changed = {k: v for k, v in told["best"].items() if v != told["default"].get(k)}
        words = ", ".join(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in changed.items())
        cells = (
            row["task"], "tuned" if told["settings"] else "defaults", words or "–", len(told["trials"]),
            f"{row['seconds'] / 60:.1f} min",
            *(f"{100 * fmean(found):.1f} ± {100 * stdev(found):.1f}" for found in (row["default"], row["best"])),
            f"{100 * (fmean(row['best']) - fmean(row['default'])):+.1f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "<!-- not run: takes minutes, and the real texts and model -->",
        "```console",
        "$ python examples/benchmarks/tuning.py run --base MODEL --work tuning-work",
        "$ python examples/benchmarks/tuning.py table --work tuning-work -o docs/benchmarks",
        "```",
    ]
    return "\n".join(lines) + "\n"


def table(arguments: argparse.Namespace) -> None:
    rows, out = results(Path(arguments.work)), Path(arguments.output)
    atomic_write_text(out / "tuning.md", page(rows))
    atomic_write_text(out / "tuning.json", json.dumps(rows) + "\n")
    print(page(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    going = verbs.add_parser("run")
    going.add_argument("--base", required=True, help="folder of an encoder or an instruct model")
    going.add_argument("--rows", type=int, default=240, help="training rows of a task (default: 240)")
    going.add_argument("--test-rows", type=int, default=500, help="test rows of a task (default: 500)")
    going.add_argument("--trials", type=int, default=12, help="settings to try for a task (default: 12)")
    going.add_argument("--tasks", default="", help=f"some of {', '.join(TASKS)}; default: all")
    going.set_defaults(do=run)
    shown = verbs.add_parser("table")
    shown.add_argument("-o", "--output", required=True, help="folder for tuning.md and tuning.json")
    shown.set_defaults(do=table)
    for verb in (going, shown):
        verb.add_argument("--work", required=True, help="folder for hubs and results")
    arguments = parser.parse_args()
    if arguments.verb == "run" and not DATA.is_dir():
        sys.exit(f"the texts are not there: {DATA}")
    arguments.do(arguments)


if __name__ == "__main__":
    main()
