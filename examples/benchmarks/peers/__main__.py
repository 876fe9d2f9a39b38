"""Training against the peers: plain PEFT + transformers Trainer, TRL's SFTTrainer, and ours on the same task.

    python examples/benchmarks/peers --task ../shared/data/cl15/agnews
    python examples/benchmarks/peers --task adapterhub_cl/demo/tickets --ways trainer-fp32,ours-nf4
    python examples/benchmarks/peers --base path/to/an/encoder --ablate --threads 1 -o docs/benchmarks

Each way runs in a process of its own, one after the other, so that peak memory is its own; ratios are taken within one
call of this script. `--ablate` trains ours with one thing taken away at a time. `-o` writes peers.md and peers.json;
several calls make one page. `--memory` compares what a larger random base (hidden size 1024) takes in memory instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import page
import psutil
from task_files import files_of

sys.path.append(str(Path(__file__).parents[1]))
from machine import installed, processor

PACKAGES = ("adapterhub-cl", "torch", "transformers", "peft", "trl", "bitsandbytes")
MEDIANS = (
    *("seconds", "cpu_seconds", "peak_mb", "training_mb", "compile_seconds", "examples_per_second"),
    *("tokens_per_second", "operations_per_second", "best_operations_per_second"),
)


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--task",
        "--data",
        default="../shared/data/cl15/agnews",
        help="folder with train.jsonl and test.jsonl, or path/name of path/name.train.jsonl and path/name.test.jsonl; "
        "rows as add-task reads them, each with a label",
    )
    parser.add_argument("--base", default="tiny", help="a causal language model or an encoder: name or folder")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, help="default: what the library takes for this base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-rows", type=int, default=0, help="take so many only; 0: all")
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--ways", default="", help="some of the table's rows, with commas between; the first is 1.00×")
    parser.add_argument("--ablate", action="store_true", help="ours with one thing taken away at a time")
    parser.add_argument("--repeats", type=int, default=1, help="rounds, all ways in turn, each with the next seed")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0: as by default")
    parser.add_argument("-o", "--output", type=Path, help="folder for peers.md and peers.json")
    parser.add_argument("--memory", action="store_true", help="compare the memory of a larger base instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    least = {"epochs": 1, "batch_size": 1, "test_rows": 1, "repeats": 1, "max_length": 8, "train_rows": 0, "threads": 0}
    for name, value in least.items():
        if getattr(asked, name) < value:
            parser.error(f"--{name.replace('_', '-')} must be at least {value}")
    return asked


def stop(message: str) -> Any:
    raise SystemExit(f"peers: {message}")


def ways_of(asked: argparse.Namespace, encoder: bool) -> dict[str, Any]:
    """The rows that are asked for, by name."""
    import ways
    from ablations import ablations

    known = ablations(encoder, asked.batch_size, asked.max_length) if asked.ablate else ways.WAYS
    names = [name for name in asked.ways.split(",") if name] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        stop(f"no way {unknown[0]!r}; known: {', '.join(known)}")
    return {name: known[name] for name in names}


def left_out(way: Any, encoder: bool) -> str:
    """Why a way is not run; empty where it is."""
    if way.others == "trl" and encoder:
        return "SFTTrainer trains language models, and this base is an encoder"
    if way.others and find_spec(way.others) is None:
        return f"{way.others} is not installed: pip install -e '.[dev]'"
    return ""


def in_its_own_process(asked: argparse.Namespace, *extra: str) -> dict[str, Any]:
    """The figures of one way, or `why` there are none."""
    folder = Path(__file__).parent
    command = [sys.executable, str(folder), *sys.argv[1:], *extra]
    with tempfile.TemporaryDirectory() as kept:  # what torch.compile keeps for the next process is no good here
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": kept}
        if asked.threads:
            environment["OMP_NUM_THREADS"] = str(asked.threads)
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode < 0:
        return {"why": f"failed: killed by signal {-done.returncode}"}
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"why": f"failed: {said[-1].strip()[:200] if said else f'exit code {done.returncode}'}"}
    lines = done.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {"why": "failed: it said nothing"}
    return found


def compare(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All ways in turns; after each round what the page tells of them so far."""
    for path in files_of(asked.task):
        if not path.is_file():
            stop(f"no data: {path} is not there; --task takes a folder with train.jsonl and test.jsonl, or path/name")
    from adapterhub_cl.quiet import quiet_third_parties

    quiet_third_parties()
    import ways

    from adapterhub_cl.bases.kinds import is_encoder
    from adapterhub_cl.errors import AdapterHubError

    try:
        info = ways.lesson_of(asked, "none").info
    except AdapterHubError as error:
        stop(f"{error.message}; {error.hint}" if error.hint else error.message)
    encoder = is_encoder(info.architecture)
    if asked.output:
        page.read(asked.output)
    chosen = ways_of(asked, encoder)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for turn in range(asked.repeats):
        for name, way in chosen.items():
            if why := left_out(way, encoder):
                rounds[name].append({"why": why})
            elif not any("why" in row for row in rounds[name]):
                seed = str(asked.seed + turn)
                rounds[name].append(in_its_own_process(asked, "--one", name, "--seed", seed))
                told = rounds[name][-1].get("why") or f"{rounds[name][-1]['examples_per_second']:.1f} examples/s"
                print(f"round {turn + 1}, {name}: {told}", file=sys.stderr, flush=True)
        yield _section(asked, info, chosen, rounds, turn + 1)


def _section(
    asked: argparse.Namespace, info: Any, chosen: dict[str, Any], rounds: dict[str, list[dict[str, Any]]], turns: int
) -> dict[str, Any]:
    rows = [{"way": name, "told": way.told, **middle(rounds[name])} for name, way in chosen.items()]
    done = next((row for row in rows if "why" not in row), None)
    if done is None:
        stop(f"no way was run; {rows[0]['way']}: {rows[0]['why']}")
    size = f"{info.architecture}, {info.parameters / 1e6:.1f} million parameters"
    return {
        "base": asked.base,
        "base_told": f"{'/'.join(Path(asked.base).parts[-2:])} ({size})",
        "task": asked.task,
        "task_told": Path(asked.task).name,
        "table": "ablation" if asked.ablate else "ways",
        "command": shlex.join(["python", "examples/benchmarks/peers", *sys.argv[1:]]),
        "machine": f"{processor()}, {psutil.cpu_count()} CPUs, {done['threads']} torch threads",
        "settings": {
            "training rows": done["train_rows"],
            "test rows": done["test_rows"],
            "labels": done["labels"],
            "epochs": asked.epochs,
            "batch size": asked.batch_size,
            "longest input": asked.max_length,
            "learning rate": done["learning_rate"],
            "seeds" if turns > 1 else "seed": ", ".join(str(asked.seed + k) for k in range(turns)),
        },
        "versions": installed(*PACKAGES),
        "rows": rows,
    }


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the rounds, and the mean of their accuracies, which are of different seeds."""
    if any("why" in row for row in rounds):
        return {"why": next(row["why"] for row in rounds if "why" in row)}
    speeds, scores = ([row[key] for row in rounds] for key in ("examples_per_second", "accuracy"))
    medians = {key: statistics.median(row[key] for row in rounds) for key in MEDIANS if key in rounds[0]}
    found = {**rounds[0], **medians, "accuracy": statistics.mean(scores)}
    return {**found, "rounds": speeds, "accuracies": scores}


def one(asked: argparse.Namespace) -> dict[str, Any]:
    """What the process of one way does."""
    import memory
    import torch

    if asked.memory:
        return memory.memory(asked.base, asked.one)
    import ways

    from adapterhub_cl.bases.kinds import is_encoder

    if asked.threads:
        torch.set_num_threads(asked.threads)
    plain = ways.lesson_of(asked, "none")
    way = ways_of(asked, is_encoder(plain.info.architecture))[asked.one]
    lesson = ways.lesson_of(asked, way.quantization) if way.quantization != "none" else plain
    return ways.measured(way, lesson)


def main() -> None:
    asked = parsed()
    if asked.one:
        print(json.dumps(one(asked)))
        return
    if asked.memory:
        import memory

        with tempfile.TemporaryDirectory() as folder:
            memory.random_base(Path(folder))
            found = [in_its_own_process(asked, "--base", folder, "--one", kind) for kind in memory.KINDS]
        failed = [row["why"] for row in found if "why" in row]
        if failed:
            stop(failed[0])
        memory.show(found)
        return
    try:
        for section in compare(asked):
            if asked.output:
                page.write(section, asked.output)
    except KeyboardInterrupt:
        print("peers: stopped; what is written are whole rounds, in which every way has run", file=sys.stderr)
        sys.exit(130)
    print(f"{section['base_told']}, {section['task_told']}; {section['machine']}")
    page.show(section)
    if section["settings"]["training rows"] * asked.epochs < 500:
        print("So few rows say little of speed: what is made and chosen once weighs as much as the training.")


if __name__ == "__main__":
    main()
