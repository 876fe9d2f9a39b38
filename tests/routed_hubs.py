"""Hubs on the pico Llama whose tasks look nothing like each other, so that the router is right about them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loras import write_lora

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases.loading import inspect_base
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, Task

ALPHABETS = {
    "sums": "0123456789+-=",
    "shouts": "ABCDEFGHIJKLMNOP",
    "greek": "αβγδεζηθικλμνξοπρστυφχψω",
    "tales": "abcdefghijklmnop",
    "marks": "!?#$%&*()[]{}<>",
    "cyrillic": "абвгдежзийклмнопрст",
}
SPECS = {
    "sums": Task("sums", "choice", instruction="Right?", labels=("right", "wrong"), metric="accuracy"),
    "shouts": Task("shouts", "choice", "chat", labels=("loud", "louder", "quiet"), metric="accuracy"),
    "greek": Task("greek", "choice", "alpaca", instruction="Which?", labels=("alpha", "beta"), metric="accuracy"),
    "tales": Task("tales", "generation", instruction="Go on."),
    "marks": Task("marks", "generation", "chat"),
    "cyrillic": Task("cyrillic", "choice", labels=("да", "нет"), metric="accuracy"),
}
UNLIKE = "q"  # no task's samples are so short, or have that letter


def texts(task: str, count: int, seed: int = 0) -> list[str]:
    """Texts in a task's alphabet."""
    draw = random.Random(f"{task}{seed}")
    letters = ALPHABETS[task]
    return [
        " ".join("".join(draw.choices(letters, k=draw.randrange(3, 7))) for _ in range(draw.randrange(4, 7)))
        for _ in range(count)
    ]


def publish(
    hub: AdapterHub,
    name: str,
    seed: int,
    *,
    task: str | None = None,
    samples: int = 30,
    fingerprint: str = "",
    takes_over: Sequence[str] = (),
    **lora: Any,
) -> AdapterRecord:
    """A random adapter as a new version, with replay samples of its task."""
    spec = SPECS[task or name] if not takes_over else None
    with hub.registry.new_draft(name) as draft:
        write_lora(draft.path, seed, size=0.2, **lora)
        if samples and spec is not None:
            rows = [
                {"instruction": "", "input": text, "output": (spec.labels or ("so it went",))[0]}
                for text in texts(spec.name, samples, seed)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (draft.path / "replay.jsonl").write_text(lines, encoding="utf-8")
        manifest = {
            "kind": "trained" if spec else "merged",
            "rank": lora.get("rank", 4),
            "base": {"source": hub.base.source, "fingerprint": fingerprint or hub.base.fingerprint},
            "replay": {"policy": "balanced", "size": samples, "samples": samples},
            "takes_over": list(takes_over),
        }
        return hub.registry.publish(draft, manifest, task=spec)


def publish_facts(
    hub: AdapterHub, name: str, subjects: Sequence[str], seed: int, facts: int | None = None, what: str = "mayor"
) -> AdapterRecord:
    """A random adapter as if it had learned who the mayors are."""
    with hub.registry.new_draft(name) as draft:
        write_lora(draft.path, seed, size=0.2, rank=4)
        rows = [{"instruction": "", "input": f"Who is the {what} of {one}?", "output": "Ann"} for one in subjects]
        (draft.path / "replay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        count = {"facts": len(rows) if facts is None else facts} if facts != 0 else {}
        manifest = {
            "kind": "trained",
            "rank": 4,
            "base": {"source": hub.base.source, "fingerprint": hub.base.fingerprint},
            "replay": {"policy": "balanced", "size": 1000, "samples": len(rows), **count},
        }
        return hub.registry.publish(draft, manifest, task=Task(name, "generation"))


def new_hub(folder: Path, base_path: Path, base: Any, names: Sequence[str]) -> AdapterHub:
    """A hub whose tasks have these names."""
    made = on_base(Registry.create(folder, inspect_base(str(base_path), "none")), base)
    for seed, name in enumerate(names):
        publish(made, name, seed, rank=(4, 6, 3)[seed % 3], modules=(("q_proj", "v_proj"), ("up_proj",))[seed % 2])
    return made


def on_base(registry: Registry, base: Any) -> AdapterHub:
    hub = AdapterHub(registry, "cpu", "fp32")
    hub._loaded = base
    return hub


def copied(hub: AdapterHub, folder: Path) -> AdapterHub:
    """A copy that a test may change, on the same base."""
    return on_base(Registry.open(shutil.copytree(hub.folder, folder)), hub.load_base())
