"""Many writers on one shared hub, killed again and again: is anything lost, is any version half there?

Several folders ("machines") share one index in PostgreSQL and one store. In each, writers of their own process publish
versions, move aliases, record scores, remove samples, read and check versions, and write down what was confirmed. The
parent kills a random writer every now and then and starts it again. At the end a new folder joins the hub, and
everything that was confirmed must be there with its content.

    createdb hub
    python examples/benchmarks/shared_hub.py --index postgresql://me@localhost/hub --store s3://bucket/prefix

Prints one JSON object; the exit code is 1 if anything was lost or half there, or if `verify` found a problem.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import BaseInfo, Evaluation, Task

BASE = BaseInfo("tiny", "f" * 64, quantization="none", architecture="LlamaForCausalLM", parameters=1234)
KINDS = ("publish", "publish", "alias", "score", "samples", "read")


class Journal:
    """What a writer was told is done: one JSON object a line, on the disk before the next operation begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        whole = [line for line in self.path.read_text().split("\n")[:-1] if line]
        return [json.loads(line) for line in whole]

    def add(self, **row: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def publish(registry: Registry, name: str, content: bytes, samples: str) -> str:
    with registry.new_draft(name) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(content)
        (draft.path / "replay.jsonl").write_text(samples)
        record = registry.publish(draft, {"kind": "trained", "rank": 8}, task=Task(name, "choice", labels=("a", "b")))
    return record.ref


def write(hub: Path, number: int, operations: int, journal: Journal, size: int) -> None:
    """One writer: does what it has not done yet; `begin` lines tell what a kill may have left undone."""
    registry = Registry.open(hub)
    name = f"writer-{number}"
    done = [row for row in journal.rows() if row["what"] != "begin"]
    chance = random.Random(f"{number}-{len(journal.rows())}")
    for count in range(len(done), operations):
        mine = [row for row in done if row["what"] == "publish"]
        what = chance.choice(KINDS) if mine else "publish"
        ref = chance.choice(mine)["ref"] if mine else ""
        journal.add(what="begin", kind=what, ref=ref, count=count)
        row: dict[str, Any] = {"what": what, "ref": ref}
        if what == "publish":
            content = f"{name} {count} {time.time_ns()} ".encode() + chance.randbytes(size)
            row["ref"] = publish(registry, name, content, f'{{"text": "{name} {count}"}}\n')
            row["sha256"] = hashlib.sha256(content).hexdigest()
        elif what == "alias":
            registry.set_alias(ref, f"mine-{number}")
        elif what == "score":
            registry.add_evaluations(ref, [Evaluation(name, "accuracy", count / operations, count + 1)])
            row |= {"n": count + 1}
        elif what == "samples":
            registry.replace_samples(ref, "")
        else:
            others = registry.adapters()
            other = chance.choice(others)
            registry.check_files(other)
            row["ref"] = other.ref
        journal.add(**row)
        done.append(row)


def run(options: argparse.Namespace, folder: Path) -> tuple[Counter[str], list[str]]:
    """Start the writers, kill some of them again and again, and wait until all have done their work."""
    chance = random.Random(options.seed)
    hubs = [folder / f"machine-{number}" for number in range(options.machines)]
    for hub in hubs:
        Registry.create(hub, BASE, index_url=options.index, store_url=options.store)
    seen: Counter[str] = Counter()
    errors: list[str] = []
    alive: dict[int, subprocess.Popen[str]] = {}

    def start(number: int) -> None:
        place = str(hubs[number % len(hubs)])
        command = [sys.executable, __file__, "--writer", str(number), "--hub", place, "--folder", str(folder)]
        command += ["--operations", str(options.operations), "--size", str(options.size)]
        alive[number] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        seen["starts"] += 1

    for number in range(options.writers):
        start(number)
    last = time.monotonic()
    while alive:
        time.sleep(0.05)
        for number, process in list(alive.items()):
            if process.poll() is None:
                continue
            said = process.stderr.read() if process.stderr else ""
            del alive[number]
            if process.returncode == -signal.SIGKILL:
                seen["kills"] += 1
                start(number)
            elif process.returncode:
                errors.append(f"writer {number}: {said.strip().splitlines()[-1] if said.strip() else 'failed'}")
        if alive and seen["kills"] < options.kills and time.monotonic() - last > options.every:
            last = time.monotonic()
            alive[chance.choice(sorted(alive))].kill()
    return seen, errors


def check(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare a hub that has just joined with everything that was confirmed."""
    hub = Registry.create(folder / "checker", BASE, index_url=options.index, store_url=options.store)
    before = hub.verify()
    fixed = hub.repair()
    lost: list[str] = []
    half: list[str] = []
    confirmed: Counter[str] = Counter()
    for record in hub.adapters(all_versions=True):
        try:
            hub.check_files(record)
        except AdapterHubError as error:
            half.append(f"{record.ref}: {error.message}")
    there = {record.ref: record for record in hub.adapters(all_versions=True)}
    aliases, scores = hub.aliases(), {(s.ref, s.evaluation.n) for s in hub.evaluations()}
    for number in range(options.writers):
        rows = Journal(folder / f"writer-{number}.jsonl").rows()
        held: set[str] = set()  # where the alias may point: the last confirmed move, and one that was interrupted later
        for row in rows:
            what, ref = row["what"], row["ref"]
            confirmed[what] += what != "begin"
            if what == "publish":
                files = there[ref].manifest["files"] if ref in there else {}
                if files.get("adapter_model.safetensors", {}).get("sha256") != row["sha256"]:
                    lost.append(f"{ref} of writer {number}")
            elif what == "alias":
                held = {ref}
            elif what == "begin" and row["kind"] == "alias":
                held |= {ref}
            elif what == "score" and (ref, row["n"]) not in scores:
                lost.append(f"a score of {ref}")
            elif what == "samples" and (there[ref].path / "replay.jsonl").read_text():
                lost.append(f"the removal of the samples of {ref}")
        now = aliases.get(f"writer-{number}", {}).get(f"mine-{number}")
        if any(row["what"] == "alias" for row in rows) and f"writer-{number}@v{now}" not in held:
            lost.append(f"an alias of writer {number}")
    return {
        "confirmed": dict(sorted(confirmed.items())),
        "versions": len(there),
        "lost": lost,
        "half_versions": half,
        "left_by_kills": len(before),
        "repaired": len(fixed),
        "problems_after_repair": [f"{p.path}: {p.problem}" for p in hub.verify()],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", help="postgresql://… of a database without tables")
    parser.add_argument("--store", help="s3://bucket/prefix, or local:///folder; empty")
    parser.add_argument("--machines", type=int, default=2, help="folders that share the hub")
    parser.add_argument("--writers", type=int, default=16, help="processes in all")
    parser.add_argument("--operations", type=int, default=200, help="per writer")
    parser.add_argument("--kills", type=int, default=100, help="at most so many")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two kills")
    parser.add_argument("--size", type=int, default=20_000, help="bytes of an adapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the machines' folders are made; default: a temporary one")
    parser.add_argument("--writer", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hub", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer is not None:
        journal = Journal(options.folder / f"writer-{options.writer}.jsonl")
        write(options.hub, options.writer, options.operations, journal, options.size)
        return 0
    if not (options.index and options.store):
        parser.error("--index and --store are needed")
    with tempfile.TemporaryDirectory(prefix="shared-hub-") as place:
        folder = options.folder or Path(place)
        began = time.monotonic()
        seen, errors = run(options, folder)
        took = time.monotonic() - began
        found = check(options, folder)
    told = {"machines": options.machines, "writers": options.writers, "operations": options.operations}
    print(json.dumps({**told, "kills": seen["kills"], "seconds": round(took, 1), "errors": errors, **found}, indent=1))
    return int(bool(errors or found["lost"] or found["half_versions"] or found["problems_after_repair"]))


if __name__ == "__main__":
    sys.exit(main())
