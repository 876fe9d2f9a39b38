"""A hub on the pico Llama with three random adapters, each of a task of its own, with replay samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loras import write_lora

from adapterhub_cl import AdapterHub
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, BaseInfo, Task

LABELS = ("good", "bad")
WORDS = ("apple", "stone", "river", "lamp", "horse", "paper")


def rows(task: str, count: int = 12) -> list[dict[str, str]]:
    return [
        {"instruction": "", "input": f"the {WORDS[k % 6]} of {task} {k}", "output": LABELS[k % 2]} for k in range(count)
    ]


def add(
    hub: AdapterHub, name: str, seed: int, *, samples: int = 12, task: str | None = None, **lora: Any
) -> AdapterRecord:
    """Publish a random adapter as a new version."""
    spec = Task(task or name, "choice", instruction="Which?", labels=LABELS, metric="accuracy")
    with hub.registry.new_draft(name) as draft:
        write_lora(draft.path, seed, **lora)
        lines = "".join(json.dumps(row) + "\n" for row in rows(spec.name, samples))
        (draft.path / "replay.jsonl").write_text(lines, encoding="utf-8")
        manifest = {
            "kind": "trained",
            "rank": max([lora.get("rank", 4), *lora.get("ranks", {}).values()]),
            "base": {"source": hub.base.source, "fingerprint": hub.base.fingerprint},
            "strategy": "isolated",
            "replay": {"policy": "balanced", "size": 12, "samples": samples},
            "training": {
                "settings": {"max_length": 64},
                "data": {"source": "gone.jsonl", "sha256": "0" * 64},
                "eval": None,
            },
        }
        return hub.registry.publish(draft, manifest, task=spec, verb="add-task")


@pytest.fixture(scope="session")
def pico_info(pico_path: Callable[[str], Path]) -> BaseInfo:
    from adapterhub_cl.bases.loading import inspect_base

    return inspect_base(str(pico_path("llama")), "none")


@pytest.fixture
def hub(tmp_path: Path, pico_info: BaseInfo, pico_base: Any) -> AdapterHub:
    """news (rank 4), reviews (rank 6, rsLoRA), slang (rank 3, other layers)."""
    made = AdapterHub(Registry.create(tmp_path / "hub", pico_info), "cpu", "fp32")
    made._loaded = pico_base
    add(made, "news", 1)
    add(made, "reviews", 2, rank=6, alpha=6, rslora=True)
    add(made, "slang", 3, rank=3, modules=("up_proj", "q_proj"))
    return made


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a hub but the index's journal, by path."""
    skipped = {".lock", "index.db-wal", "index.db-shm", "index.db", "evaluations.jsonl"}
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in skipped
    }
