"""A new user's three files: `cl-adapter add-task NAME FILE` with its defaults, against a hand-tuned script with TRL.

    python examples/benchmarks/three_files run --base MODEL --trl-python VENV/bin/python --work three-work
    python examples/benchmarks/three_files table --work three-work -o docs/benchmarks

The files are invented: tickets as CSV, e-mails to JSON objects, and conversations. `run` goes on where it stopped, and
several may share one `--work`. `write` only writes the files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

sys.path.append(str(Path(__file__).parents[1]))  # machine.py, resumable.py
import shop_rows
from machine import machine
from resumable import chosen, made, name_of, prepare, results, take_over
from shop_methods import OURS

from adapterhub_cl.registry.files import atomic_write_text

METHODS = (*OURS, "trl-bf16", "trl-fp32")
Job = tuple[str, str, int]


def jobs(files: Iterable[str], methods: Iterable[str], seeds: int) -> Iterator[Job]:
    """(file, method, seed), all of one seed before the next."""
    for seed in range(seeds):
        for method in methods:
            for file in files:
                yield file, method, seed


def run(arguments: argparse.Namespace) -> None:
    """Make the runs that are missing, each in a process of its own."""
    work = Path(arguments.work).resolve()
    asked = {"base": str(Path(arguments.base).resolve()), "rows": arguments.rows, "tests": arguments.test_rows}
    prepare(work, asked)
    if arguments.known:
        take_over(Path(arguments.known), work, ("file", "method", "seed"))
    why = no_trl(arguments.trl_python)
    failed = 0
    for job in jobs(chosen(arguments.files, shop_rows.FILES), chosen(arguments.methods, METHODS), arguments.seeds):
        if job[1] not in OURS and why:
            print(f"{name_of(job)}: skipped, {why}", file=sys.stderr, flush=True)
            continue
        failed += not made(Path(__file__).parent, work, job, line_of, "--trl-python", arguments.trl_python)
    sys.exit(1 if failed else 0)


def line_of(row: Mapping[str, Any]) -> str:
    from shop_scores import mean

    scores = ", ".join(f"{key} {mean(found):.4f}" for key, found in row["values"].items())
    return f"{scores} in {row['wall_seconds']:.0f} s"


def no_trl(python: str) -> str:
    """Why TRL cannot be run; empty if it can."""
    if not python:
        return "no --trl-python: an environment with torch, trl and peft"
    try:
        done = subprocess.run([python, "-c", "import trl"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{python}: {error.strerror}"
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    return "" if done.returncode == 0 else f"{python} cannot import trl: {said[-1]}"


def one(arguments: argparse.Namespace) -> None:
    """A single run: it starts processes, and scores what they answer."""
    from shop_methods import Place, ours, trl

    work, (file, method, seed) = Path(arguments.work), (arguments.file, arguments.method, arguments.seed)
    asked = json.loads((work / "asked.json").read_text(encoding="utf-8"))
    data = work / "data" / str(seed)
    with FileLock(work / "locks" / f"data-{seed}.lock"):
        shop_rows.write(data, seed, asked["rows"], asked["tests"])
    rate = None
    if seed and method not in OURS:
        first = work / "results" / f"{name_of((file, method, 0))}.json"
        if not first.exists():
            sys.exit(f"the learning rate is chosen with seed 0: run {name_of((file, method, 0))} first")
        rate = float(json.loads(first.read_text(encoding="utf-8"))["rate"])
    folder = work / "jobs" / name_of((file, method, seed))
    place = Place(asked["base"], file, seed, asked["rows"], asked["tests"], data, folder, arguments.trl_python, rate)
    found = ours(place, told=method == "ours-told") if method in OURS else trl(place, bf16=method == "trl-bf16")
    row = {"file": file, "method": method, "seed": seed, **asked, **found, "machine": machine()}
    atomic_write_text(work / "results" / f"{name_of((file, method, seed))}.json", json.dumps(row, ensure_ascii=False))


def table(arguments: argparse.Namespace) -> None:
    """three_files.md and three_files.json of what was measured."""
    from shop_page import page

    rows = results(Path(arguments.work))
    out = Path(arguments.output)
    atomic_write_text(out / "three_files.md", page(rows))
    atomic_write_text(out / "three_files.json", json.dumps(rows, ensure_ascii=False) + "\n")
    print(page(rows))


def write(arguments: argparse.Namespace) -> None:
    """The files of one seed, to look at or to try by hand."""
    shop_rows.write(Path(arguments.work), arguments.seed, arguments.rows, arguments.test_rows)
    print(f"wrote {', '.join(shop_rows.FILES.values())} and their test rows to {arguments.work}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="three_files", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    going = verbs.add_parser("run")
    going.add_argument("--base", required=True, help="folder of an instruct model")
    going.add_argument("--files", default="", help=f"some of {', '.join(shop_rows.FILES)}; default: all")
    going.add_argument("--methods", default="", help=f"some of {', '.join(METHODS)}; default: all")
    going.add_argument("--seeds", type=int, default=3, help="draws of the rows (default: 3)")
    going.add_argument(
        "--known", default="", help="a three_files.json: its runs with these settings are not made again"
    )
    going.set_defaults(do=run)
    written = verbs.add_parser("write", help="write the files to --work")
    written.add_argument("--seed", type=int, default=0)
    written.set_defaults(do=write)
    for verb in (going, written):
        verb.add_argument("--rows", type=int, default=200, help="training rows of a file (default: 200)")
        verb.add_argument("--test-rows", type=int, default=60, help="test rows of a file (default: 60)")
    single = verbs.add_parser("one", help="what run starts")
    for name in ("file", "method"):
        single.add_argument(name)
    single.add_argument("seed", type=int)
    single.set_defaults(do=one)
    for verb in (going, single):
        verb.add_argument(
            "--trl-python", default="", help="python of an environment with trl; without it TRL is skipped"
        )
    shown = verbs.add_parser("table")
    shown.add_argument("-o", "--output", required=True, help="folder for three_files.md and three_files.json")
    shown.set_defaults(do=table)
    for verb in (going, written, single, shown):
        verb.add_argument("--work", required=True, help="folder for files, hubs, logs and results")
    arguments = parser.parse_args()
    if arguments.verb == "run" and not (Path(arguments.base) / "config.json").is_file():
        sys.exit(f"no base at {arguments.base}")
    arguments.do(arguments)


if __name__ == "__main__":
    main()
