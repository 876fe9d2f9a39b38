"""Hubs on pico encoders, with tasks that an untrained one learns in a second: the label is the first word."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapterhub_cl import AdapterHub
from adapterhub_cl.progress import Reporter

COLOURS = ("red", "blue", "green")
ANIMALS = ("cat", "dog")
FILLERS = ("apple", "stone", "house", "river", "cloud", "table")
# Settings with which a pico encoder learns such a task.
QUICK = {"epochs": 6, "batch_size": 8, "rank": 4, "learning_rate": 0.01, "max_length": 32, "dev_share": 0.0}


def rows(labels: Sequence[str], count: int = 48, seed: int = 0) -> list[dict[str, str]]:
    """Texts whose first word is the label; none twice."""
    draw = random.Random(f"{labels}{seed}")
    found = []
    for k in range(count):
        label = labels[k % len(labels)]
        words = [label, *draw.choices(FILLERS, k=2), str(seed * 1000 + k)]
        found.append({"instruction": "Which?", "input": " ".join(words), "output": label})
    return found


def write(path: Path, found: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def data(folder: Path, labels: Sequence[str], count: int = 48, seed: int = 0) -> Path:
    """A file of `rows`."""
    return write(folder / f"{'-'.join(labels)}-{count}-{seed}.jsonl", rows(labels, count, seed))


def new_hub(folder: Path, base: Path, **options: Any) -> AdapterHub:
    return AdapterHub.init(folder, base=str(base), **{"quantization": "none", "dtype": "fp32", **options})


def teach(hub: AdapterHub, folder: Path, name: str, labels: Sequence[str], **options: Any) -> Any:
    """Add a task, scored on other rows than it learns."""
    own = {**QUICK, "replay": "balanced:12", **options}
    return hub.add_task(name, data(folder, labels), eval=data(folder, labels, 24, 1), **own)


class Notes(Reporter):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)
