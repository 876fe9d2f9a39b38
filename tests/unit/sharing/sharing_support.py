"""Two hubs of one base, a version to push, and a store that is a folder or in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registry_support import BASE

from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.sharing import pull as _pull
from adapterhub_cl.sharing import push as _push
from adapterhub_cl.types import AdapterRecord, Evaluation, Task

CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["layer"]}
SECRET = "a sample of Ann"


class Notes(Reporter):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def make_hub(path: Path) -> Registry:
    return Registry.create(path, BASE)


def lora(content: bytes) -> bytes:
    """A LoRA in safetensors' format whose numbers are made of the content; as large, unless that is tiny."""
    names = ("base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight")
    size = max(len(content) - 400, 4) // 4 * 2

    def header(size: int) -> bytes:
        rows = {n: {"dtype": "F16", "shape": [size // 2], "data_offsets": [k * size, k * size + size]}
                for k, n in enumerate(names)}  # fmt: skip
        return json.dumps(rows).encode()

    wide = 392 if len(content) > 404 else 256
    return wide.to_bytes(8, "little") + header(size).ljust(wide) + (content * 2)[-2 * size :].ljust(2 * size)


def train(registry: Registry, name: str = "news", content: bytes = b"weights" * 100, **given: Any) -> AdapterRecord:
    """Publish a version that looks as add-task writes it."""
    options = {key: given.pop(key) for key in ("edges", "serve") if key in given}
    task = Task(given.pop("task", name), "choice", labels=given.pop("labels", ("a", "b")))
    with registry.new_draft(name) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(lora(content))
        (draft.path / "adapter_config.json").write_text(json.dumps(CONFIG))
        (draft.path / "replay.jsonl").write_text(json.dumps({"input": SECRET, "output": "a"}) + "\n")
        manifest = {
            "kind": "trained",
            "rank": 8,
            "base": {"source": registry.base.source, "fingerprint": registry.base.fingerprint},
            "replay": {"policy": "balanced", "samples": 1},
            "gate": {"passed": True, "max_forgetting": 0.02},
            **given,
        }
        scores = [Evaluation(task.name, "accuracy", 0.5, 10)]
        return registry.publish(draft, manifest, task=task, evaluations=scores, verb="add-task", **options)


def push(registry: Registry, target: object, *refs: str, **given: Any) -> list[Any]:
    return _push(registry, str(target), refs, **{"reporter": Reporter(), **given})


def pull(registry: Registry, target: object, ref: str | None = None, **given: Any) -> list[Any]:
    return _pull(registry, str(target), ref, **{"reporter": Reporter(), **given})
