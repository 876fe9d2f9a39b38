"""Streams of tasks on a real language model: what each method has learned at the end, and what it forgot on the way.

    python examples/benchmarks/llm run --base MODEL --work llm-work
    python examples/benchmarks/llm table --work llm-work -o docs/benchmarks

`superni` has seven tasks, most of them with free answers, and three seeds; order1 to order4 are those of cl15 with one
seed, and `families` has seven of their tasks, of two kinds. `run` goes on where it stopped, and with
`--known docs/benchmarks/llm.json` where another machine did; several may share one `--work`. The texts are
those of ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

sys.path.append(str(Path(__file__).parents[1]))  # machine.py, resumable.py
from machine import machine, versions
from methods import MERGES, METHODS, Place, measured
from resumable import chosen, made, name_of, prepare, results, take_over
from streams import DATA, STREAMS, Budget, write_rows

from adapterhub_cl.registry.files import atomic_write_text

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "adapterhub-cl")
# These stand on the hub that `ours` leaves.
NEEDS_OURS = ("distilled", "multitask", "multitask-chosen", *(f"merged-{method}" for method in MERGES))
SEEDS = {"superni": 3}  # of the others one
Job = tuple[str, str, int]


def jobs(streams: Iterable[str], methods: Iterable[str]) -> Iterator[Job]:
    """(stream, method, seed), the telling ones first; the base has no seed."""
    for seed in range(max(SEEDS.values())):
        for stream in streams:
            for method in methods:
                if seed < SEEDS.get(stream, 1) and not (method == "base" and seed):
                    yield stream, method, seed


def run(arguments: argparse.Namespace) -> None:
    """Make the runs that are missing, each in a process of its own."""
    work = Path(arguments.work).resolve()
    budget = Budget(arguments.rows, arguments.test_rows, arguments.epochs)
    asked = {"base": str(Path(arguments.base).resolve()), "quantization": arguments.quantization, **asdict(budget)}
    prepare(work, asked, "hubs")
    if arguments.known:
        take_over(Path(arguments.known), work, ("stream", "method", "seed"))
    failed, left = 0, list(jobs(chosen(arguments.streams, STREAMS), chosen(arguments.methods, METHODS)))
    while left:
        job = next((one for one in left if is_ready(work, one, left)), None)
        if job is None:
            time.sleep(10)  # another process makes what the others need
        else:
            left.remove(job)
            failed += not made(Path(__file__).parent, work, job, line_of)
    sys.exit(1 if failed else 0)


def is_ready(work: Path, job: Job, left: Sequence[Job]) -> bool:
    """Whether what a job stands on is there, or will never be, which the job itself then says."""
    stream, method, seed = job
    ours = (stream, "ours", seed)
    if method not in NEEDS_OURS or (work / "results" / f"{name_of(ours)}.json").exists():
        return True
    try:
        with FileLock(work / "locks" / f"{name_of(ours)}.lock", timeout=0):
            return ours not in left
    except Timeout:
        return False


def line_of(row: Mapping[str, Any]) -> str:
    return f"AP {row['ap']:.4f} in {row['seconds']:.0f} s"


def one(arguments: argparse.Namespace) -> None:
    """A single run, in this process."""
    work, (stream, method, seed) = Path(arguments.work), (arguments.stream, arguments.method, arguments.seed)
    asked = json.loads((work / "asked.json").read_text(encoding="utf-8"))
    budget = Budget(asked["rows"], asked["tests"], asked["epochs"], asked["max_length"])
    data = work / "data" / f"{stream}-{seed}"
    with FileLock(work / "locks" / f"data-{stream}-{seed}.lock"):
        write_rows(data, STREAMS[stream], budget, seed)
    ours = work / "hubs" / name_of((stream, "ours", seed))
    if method in NEEDS_OURS and not (work / "results" / f"{ours.name}.json").exists():
        sys.exit(f"{method} needs what `ours` leaves for {stream} with seed {seed}: run that first")
    hub = work / "hubs" / name_of((stream, method, seed))
    place = Place(asked["base"], asked["quantization"], hub, ours, data, STREAMS[stream], seed, budget)
    row = {"stream": stream, "method": method, "seed": seed, **asked, **measured(method, place)}
    row["machine"] = f"{machine()}, {versions(*PACKAGES)}"
    atomic_write_text(work / "results" / f"{name_of((stream, method, seed))}.json", json.dumps(row))


def table(arguments: argparse.Namespace) -> None:
    """llm.md and llm.json of what was measured."""
    from llm_page import page

    rows = [row for work in arguments.work.split(",") for row in results(Path(work))]
    out = Path(arguments.output)
    atomic_write_text(out / "llm.md", page(rows))
    atomic_write_text(out / "llm.json", json.dumps(rows) + "\n")
    print(page(rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="llm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    going = verbs.add_parser("run")
    going.add_argument("--base", required=True, help="folder of an instruct model")
    going.add_argument("--quantization", default="none", choices=("none", "nf4", "int8"))
    going.add_argument("--streams", default="", help=f"some of {', '.join(STREAMS)}; default: all")
    going.add_argument("--methods", default="", help=f"some of {', '.join(METHODS)}; default: all")
    going.add_argument("--rows", type=int, default=160, help="training rows of a task (default: 160)")
    going.add_argument("--test-rows", type=int, default=50, help="test rows of a task (default: 50)")
    going.add_argument("--epochs", type=int, default=3, help="passes over a task's rows (default: 3)")
    going.add_argument(
        "--known", default="", help="an llm.json of `table`: its runs with these settings are not made again"
    )
    going.set_defaults(do=run)
    single = verbs.add_parser("one", help="what run starts")
    for name in ("stream", "method"):
        single.add_argument(name)
    single.add_argument("seed", type=int)
    single.set_defaults(do=one)
    shown = verbs.add_parser("table")
    shown.add_argument("-o", "--output", required=True, help="folder for llm.md and llm.json")
    shown.set_defaults(do=table)
    for verb in (going, single):
        verb.add_argument("--work", required=True, help="folder for hubs, logs and results")
    shown.add_argument("--work", required=True, help="folders of results, with commas between")
    arguments = parser.parse_args()
    if arguments.verb == "run" and not DATA.is_dir():
        sys.exit(f"the texts are not there: {DATA}")
    if arguments.verb == "run" and not (Path(arguments.base) / "config.json").is_file():
        sys.exit(f"no base at {arguments.base}")
    arguments.do(arguments)


if __name__ == "__main__":
    main()
