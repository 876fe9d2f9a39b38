"""How long `list`, `show` and `log` take, cold, with 10, 1,000 and 10,000 adapters, and what importing costs of it.

    python examples/benchmarks/listing.py -o docs/benchmarks

The adapters have the manifests that training writes, but their weights are a few bytes. Each command runs in a process
of its own; times are medians of several runs, beside a bare `python -c pass` and `import torch` in the same run. Also
how long the index takes to be made anew, and one version more to be published.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = (10, 1_000, 10_000)
VERBS = (["list"], ["list", "--json"], ["show", "task-7"], ["log"], ["lineage", "task-7"])

ANEW, MORE = "the index made anew (within a process)", "a version published (within a process)"


def make_hub(folder: Path, count: int) -> Path:
    """A hub of so many adapters, each with a task and a score: one is published, the others are its copies under names
    of their own, and the index is made from their manifests."""
    from adapterhub_cl.registry import Registry
    from adapterhub_cl.types import BaseInfo, Evaluation, Task

    base = BaseInfo("tiny", "f" * 64, quantization="none", architecture="LlamaForCausalLM", parameters=1234)
    hub = Registry.create(folder / f"hub-{count}", base)
    with hub.new_draft("task-0") as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
        task = Task("task-0", "choice", labels=("a", "b"))
        scores = [Evaluation("task-0", "accuracy", 0.5, 100)]
        first = hub.publish(draft, {"kind": "trained", "rank": 16}, task=task, evaluations=scores)
    told = (first.path / "manifest.json").read_text(encoding="utf-8")
    for number in range(1, count):
        place = hub.adapters_dir / f"task-{number}" / "v1"
        place.mkdir(parents=True)
        (place / "adapter_model.safetensors").write_bytes(b"weights")
        (place / "manifest.json").write_text(told.replace("task-0", f"task-{number}"), encoding="utf-8")
    hub.rebuild()
    return hub.path


def seconds(command: list[str], runs: int) -> float:
    """Median wall time of a command."""
    times = []
    with open(os.devnull, "w") as nowhere:
        for _ in range(runs):
            started = time.perf_counter()
            subprocess.run(command, stdout=nowhere, stderr=nowhere, check=True)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def changing(path: Path) -> tuple[float, float]:
    """Seconds for the whole index, and the median for publishing a version, in a process that has all imported."""
    from adapterhub_cl.registry import Registry

    started = time.perf_counter()
    Registry.rebuild_at(path)
    anew = time.perf_counter() - started
    hub, times = Registry.open(path), []
    for _ in range(5):
        with hub.new_draft("task-7") as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
            started = time.perf_counter()
            hub.publish(draft, {"kind": "trained", "rank": 16})
            times.append(time.perf_counter() - started)
    return anew, statistics.median(times)


def imported(hub: Path) -> tuple[int, list[tuple[float, str]]]:
    """Number of modules that `list` imports, and the ten that cost most by themselves, in milliseconds."""
    command = [sys.executable, "-X", "importtime", "-m", "cl_adapter", "--hub", str(hub), "list"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    rows = [line.removeprefix("import time:").split("|") for line in told.splitlines() if "|" in line]
    costs = [(float(own) / 1000, name.strip()) for own, _, name in rows if own.strip().isdigit()]
    return len(costs), sorted(costs, reverse=True)[:10]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="folder for listing.json and listing.md")
    parser.add_argument("--runs", type=int, default=9)
    asked = parser.parse_args()
    python = [sys.executable]
    found: dict[str, Any] = {
        "python -c pass": seconds([*python, "-c", "pass"], asked.runs),
        "import torch": seconds([*python, "-c", "import torch"], 3),
    }
    with tempfile.TemporaryDirectory() as folder:
        for count in SIZES:
            hub = make_hub(Path(folder), count)
            print(f"{count} adapters", flush=True)
            found.setdefault(ANEW, {})[count], found.setdefault(MORE, {})[count] = changing(hub)
            for verb in VERBS:
                command = [*python, "-m", "cl_adapter", "--hub", str(hub), *verb]
                found.setdefault(" ".join(verb), {})[count] = seconds(command, asked.runs)
            modules, costs = imported(hub)
    lines = ["# Listing, cold", ""]
    lines += [f"Seconds of wall time, medians of {asked.runs} runs. {os.cpu_count()} cores, {platform.machine()}, "]
    lines += [
        f"Python {platform.python_version()}. `python -c pass` takes {found['python -c pass']:.3f} s, `import torch` "
    ]
    lines += [
        f"{found['import torch']:.2f} s; no listing verb imports it. Made by `examples/benchmarks/listing.py`.",
        "",
    ]
    lines += [
        "| command | " + " | ".join(f"{count:,} adapters" for count in SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    for name in (*(" ".join(verb) for verb in VERBS), ANEW, MORE):
        lines.append(
            f"| {name if name in (ANEW, MORE) else f'`{name}`'} | "
            + " | ".join(f"{found[name][count]:.2f}" for count in SIZES)
            + " |"
        )
    lines += [
        "",
        f"`python -X importtime -m cl_adapter list` imports {modules} modules; the ten that cost most, by themselves:",
    ]
    lines += ["", "| module | ms |", "|---|---:|", *(f"| `{name}` | {ms:.1f} |" for ms, name in costs), ""]
    print("\n".join(lines))
    if asked.output:
        (asked.output / "listing.md").write_text("\n".join(lines), encoding="utf-8")
        (asked.output / "listing.json").write_text(json.dumps({**found, "modules": modules}, indent=1) + "\n")


if __name__ == "__main__":
    main()
