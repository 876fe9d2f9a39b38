"""What each strategy forgets: order 1 of the continual-learning papers (dbpedia, amazon, yahoo, agnews), NF4.

    python examples/benchmarks/forgetting.py run --work /tmp/forgetting --jobs 2
    python examples/benchmarks/forgetting.py table --work /tmp/forgetting -o docs/benchmarks

`run` teaches the stream under every variant and seed, each in a hub of its own; started again it goes on where it
stopped. `table` writes what was measured as Markdown, JSON and pictures. The texts are those of
../shared/data/cl15 (see its README); the same rows, epochs and seeds for every variant. Options of strategies are the
defaults; only `ewc.strength` was chosen, on the tasks' dev splits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import machine, remarks

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "cl15"
ORDER = ("dbpedia", "amazon", "yahoo", "agnews")
ASKS = {"amazon": "Which sentiment?"}
SHARE = 20  # samples of each task: 5 % of its rows


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    strategy: str
    group: str = "strategies"
    replay: str = "none"
    options: dict[str, Any] = field(default_factory=dict)


KEPT = f"balanced:{SHARE}"
VARIANTS = [
    Variant("sequential", "sequential"),
    Variant("replay", "replay", replay=KEPT),
    Variant("isolated", "isolated"),
    Variant("ewc", "ewc"),
    Variant("lwf", "lwf"),
    Variant("olora", "olora"),
    Variant("inflora", "inflora"),
    Variant("osf", "osf"),
    Variant("forever", "forever", replay=KEPT),
    Variant("slao", "slao"),
    Variant("incremental", "incremental"),
    Variant("der", "der", replay=KEPT),
    Variant("reptile", "reptile", replay=KEPT),
    Variant("multitask", "multitask"),
    Variant("replay, 40 samples", "replay", "budget", "balanced:40"),
    Variant("replay, generated", "replay", "generated", f"generated:{SHARE}"),
    Variant("replay, adaptive", "replay", "schedule", KEPT, {"replay.schedule": "adaptive"}),
    *(Variant(f"replay, {p}", "replay", "policy", f"{p}:{SHARE}") for p in ("reservoir", "importance", "herding")),
    *(Variant(f"replay, {n} samples", "replay", "budget", f"balanced:{n}") for n in (10, 80)),
    Variant("replay+olora", "replay+olora", replay=KEPT),
    *(Variant(f"replay, {p}", "replay", "policy", f"{p}:{SHARE}") for p in ("hard", "k_center")),
]


def write_stream(work: Path, rows: int, test_rows: int) -> Path:
    """The stream file and its data: a fixed draw of each task's rows."""
    tasks = []
    for name in ORDER:
        for split, count in (("train", rows), ("test", test_rows)):
            lines = (DATA / name / f"{split}.jsonl").read_text(encoding="utf-8").strip().split("\n")
            random.Random(f"{name} {split}").shuffle(lines)
            (work / f"{name}.{split}.jsonl").write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")
        columns = {"input": "input", "output": "output"}
        task = {"name": name, "data": f"{name}.train.jsonl", "eval": f"{name}.test.jsonl", "columns": columns}
        tasks.append({**task, "instruction": ASKS.get(name, "Which topic?")})
    path = work / "order1.json"
    path.write_text(json.dumps({"name": "order1", "tasks": tasks}, indent=1), encoding="utf-8")
    return path


def one(work: Path, variant: Variant, seed: int, settings: dict[str, Any]) -> None:
    """Teach one variant with one seed, and write down what was measured."""
    from adapterhub_cl import AdapterHub
    from adapterhub_cl.errors import HubError
    from adapterhub_cl.progress import Reporter

    class Lines(Reporter):
        def note(self, text: str) -> None:
            print(f"[{variant.name} {seed}] {text}", flush=True)

    folder = work / "hubs" / f"{slug(variant)}-seed{seed}"
    try:
        hub = AdapterHub.open(folder)
    except HubError:
        hub = AdapterHub.init(folder, "tiny", quantization="nf4")
    started = time.monotonic()
    (matrix,) = hub.stream(
        work / "order1.json",
        strategies=[variant.strategy],
        seeds=[seed],
        options=variant.options,
        replay=variant.replay,
        reporter=Lines(),
        **settings,
    )
    row = matrix.to_json() | {"variant": variant.name, "group": variant.group, "replay": variant.replay, "seed": seed}
    row |= {"wall_seconds": round(time.monotonic() - started, 1), "settings": settings, "machine": machine()}
    target = work / "results" / f"{slug(variant)}-seed{seed}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(row, indent=1), encoding="utf-8")


def slug(variant: Variant) -> str:
    return "".join(c if c.isalnum() else "-" for c in variant.name)


def run(arguments: argparse.Namespace) -> None:
    work = Path(arguments.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "order1.json").exists():
        write_stream(work, arguments.rows, arguments.test_rows)
    settings = {"epochs": arguments.epochs, "max_length": arguments.max_length}
    (work / "settings.json").write_text(json.dumps({**vars(arguments), "work": ""}, indent=1), encoding="utf-8")
    waiting = [
        (variant, seed)
        for variant in VARIANTS
        if not arguments.only or variant.group in arguments.only.split(",")
        for seed in map(int, arguments.seeds.split(","))
        if not (work / "results" / f"{slug(variant)}-seed{seed}.json").exists()
    ]
    going: list[tuple[subprocess.Popen[bytes], str]] = []
    threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    while waiting or going:
        while waiting and len(going) < arguments.jobs:
            variant, seed = waiting.pop(0)
            command = [sys.executable, "-u", __file__, "one", variant.name, str(seed), "--work", str(work)]
            command += ["--settings", json.dumps(settings)]
            going.append((subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads}), variant.name))
        time.sleep(1)
        for process, name in list(going):
            if process.poll() is not None:
                going.remove((process, name))
                if process.returncode:
                    print(f"{name}: failed with exit code {process.returncode}", file=sys.stderr)


def table(arguments: argparse.Namespace) -> None:
    from adapterhub_cl.evaluation.matrix import AccuracyMatrix, compare, mean_and_spread
    from adapterhub_cl.reporting.pictures import curves_picture, matrix_picture

    work, out = Path(arguments.work), Path(arguments.output)
    out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "results").glob("*.json"))]
    settings = json.loads((work / "settings.json").read_text(encoding="utf-8"))
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: r["seed"]):
        by_name.setdefault(row["variant"], []).append(row)
    ordered = [v for v in VARIANTS if v.name in by_name]
    lines = [
        "# What each strategy forgets: order 1 (dbpedia, amazon, yahoo, agnews), base `tiny` in NF4",
        "",
        f"{settings['rows']} training and {settings['test_rows']} test rows of each task, {settings['epochs']} epochs, "
        f"{settings['max_length']} tokens at most, rank 16, seeds {settings['seeds']}; mean ± standard deviation over "
        f"seeds. {'; '.join(dict.fromkeys(row['machine'] for row in rows))}. Several runs went on at a time, so "
        "seconds are those of a shared machine.",
        "",
        "AP: mean score after the last task. BWT: what the earlier tasks changed by since they were learned. "
        "Forgetting: what they lost since their best. FWT (GEM): score on a task before it is learned, over the "
        "bare base's. Multitask sees the data of all tasks so far at every stage.",
        "",
        *remarks(rows),
    ]
    for group in dict.fromkeys(v.group for v in ordered):
        mine = [v for v in ordered if v.group == group]
        if group != "strategies":
            mine = [v for v in ordered if v.name in ("replay", "sequential")] + mine
        lines += [f"## {group.capitalize()}", "", "| | keeps | AP | BWT | forgetting | FWT | seconds |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for variant in sorted(mine, key=lambda v: -mean_of(by_name[v.name], "average_accuracy")):
            found = by_name[variant.name]
            cells = [variant.name + (f" ({len(found)} seeds)" if len(found) != 3 else ""), found[0]["replay"]]
            for key in ("average_accuracy", "bwt", "forgetting", "fwt", "seconds"):
                values = [row[key] for row in found if row[key] is not None]
                mean, spread, _ = mean_and_spread(values) if values else (0.0, 0.0, 0)
                digits = 0 if key == "seconds" else 3
                cells.append(f"{mean:.{digits}f} ± {spread:.{digits}f}" if values else "–")
            lines.append("| " + " | ".join(cells) + " |")
        if group != "strategies" and "replay" in by_name:
            yardstick = "replay, reservoir" if group == "policy" and "replay, reservoir" in by_name else "replay"
            lines += ["", f"AP against `{yardstick}`, paired by seed (95 % interval):"]
            for variant in (v for v in mine if v.name not in (yardstick, "sequential")):
                ours, theirs = by_name[variant.name], by_name[yardstick]
                seeds = sorted({r["seed"] for r in ours} & {r["seed"] for r in theirs})
                pick = [
                    [next(r for r in side if r["seed"] == s)["average_accuracy"] for s in seeds]
                    for side in (ours, theirs)
                ]
                if len(seeds) > 1:
                    c = compare(*pick)
                    lines.append(f"- {variant.name}: {c.difference:+.3f} ({c.low:+.3f} to {c.high:+.3f})")
        lines.append("")
    (out / "forgetting.md").write_text("\n".join(lines), encoding="utf-8")
    (out / "forgetting.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    matrices = [
        AccuracyMatrix.from_json({**row, "name": row["variant"]})
        for v in ordered
        if v.group == "strategies"
        for row in by_name[v.name]
    ]
    if matrices:
        first = [m for k, m in enumerate(matrices) if m.name not in [o.name for o in matrices[:k]]]
        matrix_picture(first, out / "forgetting_matrices.png")
        curves_picture(matrices, out / "forgetting_curves.png")
    print("\n".join(lines))


def mean_of(rows: list[dict[str, Any]], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    going = verbs.add_parser("run")
    going.add_argument("--work", required=True)
    going.add_argument("--rows", type=int, default=400)
    going.add_argument("--test-rows", type=int, default=200)
    going.add_argument("--epochs", type=int, default=3)
    going.add_argument("--max-length", type=int, default=128)
    going.add_argument("--seeds", default="0,1,2")
    going.add_argument("--only", default="", help="groups with commas between; default: all")
    going.add_argument("--jobs", type=int, default=1, help="runs at a time")
    single = verbs.add_parser("one")
    single.add_argument("variant")
    single.add_argument("seed", type=int)
    single.add_argument("--work", required=True)
    single.add_argument("--settings", required=True)
    shown = verbs.add_parser("table")
    shown.add_argument("--work", required=True)
    shown.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    if arguments.verb == "run":
        if not DATA.is_dir():
            sys.exit(f"the texts are not there: {DATA}")
        run(arguments)
    elif arguments.verb == "one":
        variant = next(v for v in VARIANTS if v.name == arguments.variant)
        one(Path(arguments.work), variant, arguments.seed, json.loads(arguments.settings))
    else:
        table(arguments)


if __name__ == "__main__":
    main()
