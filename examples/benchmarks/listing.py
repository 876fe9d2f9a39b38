"""How long `list`, `show` and `log` take, cold, with 10, 1,000 and 10,000 adapters, and what importing costs of it.

    python examples/benchmarks/listing.py -o examples/benchmarks/results

The adapters are published as training publishes them, but their weights are a few bytes. Each command runs in a process
of its own, its output into a file; times are medians of several runs, beside a bare `python -c pass` and
`import torch` in the same run.
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


def make_hub(folder: Path, count: int) -> Path:
    """A hub of so many adapters, each with a task, a score and an event."""
    from adapterhub_cl.registry import Registry
    from adapterhub_cl.types import BaseInfo, Evaluation, Task

    base = BaseInfo("tiny", "f" * 64, quantization="none", architecture="LlamaForCausalLM", parameters=1234)
    hub = Registry.create(folder / f"hub-{count}", base)
    for number in range(count):
        name = f"task-{number}"
        with hub.new_draft(name) as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
            task = Task(name, "choice", labels=("a", "b"))
            score = Evaluation(name, "accuracy", 0.5 + number % 50 / 100, 100)
            hub.publish(draft, {"kind": "trained", "rank": 16}, task=task, evaluations=[score])
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
    for verb in VERBS:
        name = " ".join(verb)
        lines.append(f"| `{name}` | " + " | ".join(f"{found[name][count]:.2f}" for count in SIZES) + " |")
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
