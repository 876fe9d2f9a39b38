"""What every way to make one adapter of several retains: order 1 of the continual-learning papers, base tiny, NF4.

    python examples/benchmarks/consolidation.py run --work /tmp/consolidation
    python examples/benchmarks/consolidation.py table --work /tmp/consolidation -o docs/benchmarks

`run` trains one adapter for each task and seed (all 1,000 training rows, the program's defaults, 200 replay samples),
then merges, distils and prunes them; started again it goes on where it stopped. Every result has the rank of one parent
(16), so what is compared is what it can hold, not its size; rows that keep all 64 ranks stand apart. `table` writes
what was measured as Markdown and JSON. The texts are those of ../shared/data/cl15 (see its README).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "cl15"
TASKS = ("dbpedia", "amazon", "yahoo", "agnews")
ASKS = {"amazon": "Which sentiment?"}
RANK, TEST_ROWS = 16, 500
SETTINGS: dict[str, Any] = {"epochs": 3, "max_length": 128, "rank": RANK}


@dataclass(frozen=True)
class Variant:
    """A row of the table: a verb of the hub with its arguments."""

    name: str
    verb: str
    asked: dict[str, Any] = field(default_factory=dict)
    group: str = "rank of one parent"


def prepare(work: Path, seed: int) -> Any:
    """The hub of a seed, with one adapter for each task; trains those that are missing."""
    from adapterhub_cl import AdapterHub

    place = work / f"hub-{seed}"
    hub = AdapterHub.open(place) if (place / "hub.toml").exists() else AdapterHub.init(place, base="tiny")
    there = {record.name for record in hub.list()}
    for name in TASKS:
        if name not in there:
            files = {split: work / f"{name}.{split}.jsonl" for split in ("train", "test")}
            columns = {"input": "input", "output": "output"}
            asks = ASKS.get(name, "Which topic?")
            hub.add_task(
                name, files["train"], eval=files["test"], columns=columns, instruction=asks, seed=seed, **SETTINGS
            )
            print(f"seed {seed}: trained {name}", flush=True)
    return hub


def draw(work: Path) -> None:
    """The data: all training rows, a fixed draw of the test rows."""
    for name in TASKS:
        for split, count in (("train", None), ("test", TEST_ROWS)):
            path = work / f"{name}.{split}.jsonl"
            if not path.exists():
                text = (DATA / name / f"{split}.jsonl").read_text(encoding="utf-8")
                lines = [line for line in text.split("\n") if line]
                random.Random(f"{name} {split}").shuffle(lines)
                path.write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")


METHODS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("linear", "slao", "ema", "ties", "dare", "dare_ties", "della", "breadcrumbs")),
    *((name, {"space": "core"}) for name in ("ties", "dare", "dare_ties", "della", "breadcrumbs")),
    *((name, {}) for name in ("knots", "tsv", "iso", "ctm", "regmean", "learned")),
]
WIDE = ("linear", "ties", "knots", "tsv", "iso", "regmean", "learned")
ALL = "all ranks (64)"
VARIANTS = [
    *(
        Variant(f"{name}{' (core)' if options else ''}", "merge", {"method": name, "rank": RANK, "options": options})
        for name, options in METHODS
    ),
    Variant("linear, weights 0.5", "merge", {"method": "linear", "rank": RANK, "weights": [0.5] * len(TASKS)}),
    Variant("distill from linear", "distill"),
    Variant("distill from learned", "distill", {"start": "learned"}),
    Variant("distill afresh", "distill", {"start": "none"}),
    Variant("distill, pseudo-samples only", "distill", {"samples": False, "pseudo": 200}),
    *(Variant(f"{name}, all ranks", "merge", {"method": name, "rank": RANK * 4}, ALL) for name in WIDE),
    Variant("distill from linear, all ranks", "distill", {"rank": RANK * 4}, ALL),
]


def one(work: Path, hub: Any, variant: Variant, seed: int) -> None:
    """Make the version of a variant, and write down what it retains."""
    target = work / "results" / f"{variant.name.replace(' ', '_')}-{seed}.json"
    if target.exists():
        return
    name = "".join(c if c.isalnum() else "-" for c in variant.name.lower()).strip("-")
    known = {record.name for record in hub.list()}
    started = time.monotonic()
    asked = dict(variant.asked)
    if variant.verb == "merge":
        record = hub.merge(TASKS, name=name, seed=seed, new_version=name in known, **asked)
    else:
        record = hub.distill(TASKS, name=name, seed=seed, new_version=name in known, **asked)
    effects = record.manifest["gate"]["effects"]
    found = {
        "variant": variant.name,
        "group": variant.group,
        "seed": seed,
        "rank": record.rank,
        "retention": {e["task"]: e["after"] / e["before"] for e in effects},
        "accuracy": {e["task"]: e["after"] for e in effects},
        "parents": {e["task"]: e["before"] for e in effects},
        "truncation_error": record.manifest.get("truncation_error"),
        "seconds": round(time.monotonic() - started, 1),
    }
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    mean = sum(found["retention"].values()) / len(TASKS)
    print(f"seed {seed}  {variant.name:32}  {mean:.3f}  {found['seconds']:.0f} s", flush=True)


def run(work: Path, seeds: list[int], only: str) -> None:
    """Everything that is not there yet."""
    (work / "results").mkdir(parents=True, exist_ok=True)
    draw(work)
    for seed in seeds:
        hub = prepare(work, seed)
        for variant in VARIANTS:
            if only in variant.name:
                one(work, hub, variant, seed)


def table(work: Path, output: Path) -> None:
    """Markdown and JSON of what was measured."""
    from adapterhub_cl.evaluation.matrix import mean_and_spread

    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "results").glob("*.json"))]
    order = {variant.name: k for k, variant in enumerate(VARIANTS)}
    lines = [
        "# What one adapter keeps of four",
        "",
        "Retention: score of the one adapter ÷ score of the adapter trained for the task, on the same "
        f"{TEST_ROWS} test rows; mean ± standard deviation over the seeds of the mean over tasks. *Of the average*: "
        "average accuracy ÷ the separate adapters' average accuracy. Made by "
        "`python examples/benchmarks/consolidation.py run` and `table`; see the script for data and settings.",
        "",
    ]
    parents = {(row["seed"], task): score for row in rows for task, score in row["parents"].items()}
    for task in TASKS:
        scores = [score for (_, name), score in sorted(parents.items()) if name == task]
        lines.append(f"- {task}: its own adapter scores {', '.join(f'{score:.3f}' for score in scores)}")
    summary = []
    for group in dict.fromkeys(variant.group for variant in VARIANTS):
        head = f"| method | {' | '.join(TASKS)} | mean | of the average | lowest task | seconds | seeds |"
        lines += ["", f"## {group}", "", head, "|---|" + "---|" * (len(TASKS) + 5)]
        mine: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["group"] == group:
                mine.setdefault(row["variant"], []).append(row)
        for name in sorted(mine, key=lambda n: -_mean(mine[n])):
            found = mine[name]
            means = [sum(row["retention"].values()) / len(TASKS) for row in found]
            mean, spread, count = mean_and_spread(means)
            tasks = [sum(row["retention"][task] for row in found) / len(found) for task in TASKS]
            lowest = sum(min(row["retention"].values()) for row in found) / len(found)
            kept = sum(sum(row["accuracy"].values()) / sum(row["parents"].values()) for row in found) / len(found)
            seconds = sum(row["seconds"] for row in found) / len(found)
            shown = f"{mean:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
            cells = " | ".join(f"{value:.3f}" for value in tasks)
            lines.append(f"| {name} | {cells} | {shown} | {kept:.3f} | {lowest:.3f} | {seconds:.0f} | {count} |")
            about_it = {"mean": mean, "spread": spread, "of_the_average": kept, "lowest": lowest}
            summary.append({"variant": name, "group": group, **about_it})
    about = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines += ["", f"Measured on {about}; seconds include the measuring, on a machine shared with other work.", ""]
    output.mkdir(parents=True, exist_ok=True)
    (output / "consolidation.md").write_text("\n".join(lines), encoding="utf-8")
    rows.sort(key=lambda row: (order.get(row["variant"], 99), row["seed"]))
    text = json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n"
    (output / "consolidation.json").write_text(text, encoding="utf-8")
    print("\n".join(lines))


def _mean(rows: list[dict[str, Any]]) -> float:
    return sum(sum(row["retention"].values()) / len(TASKS) for row in rows) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("--work", type=Path, required=True)
    running.add_argument("--seeds", default="0,1,2")
    running.add_argument("--only", default="", help="variants whose name holds this")
    showing = verbs.add_parser("table")
    showing.add_argument("--work", type=Path, required=True)
    showing.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if given.verb == "table":
        table(given.work, given.output)
        return
    if not DATA.is_dir():
        raise SystemExit(f"the data are not at {DATA}: nothing was measured")
    run(given.work, [int(seed) for seed in given.seeds.split(",")], given.only)


if __name__ == "__main__":
    main()
