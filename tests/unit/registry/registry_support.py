"""Hubs in a temporary directory, and a quick way to publish into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation, Task

BASE = BaseInfo("tiny", "f" * 64, quantization="none", architecture="LlamaForCausalLM", parameters=1234)
Publish = Callable[..., AdapterRecord]


@pytest.fixture
def base() -> BaseInfo:
    return BASE


@pytest.fixture
def hub(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "hub", BASE)


def publish_into(
    registry: Registry,
    name: str = "news",
    *,
    task: str | None = "news",
    status: str = "active",
    score: float | None = None,
    content: bytes = b"weights" * 100,
    takes_over: Sequence[str] = (),
    **options: object,
) -> AdapterRecord:
    with registry.new_draft(name) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(content)
        (draft.path / "extra").mkdir()
        (draft.path / "extra" / "training.json").write_text("{}")
        return registry.publish(
            draft,
            {"kind": "trained", "rank": 8, "status": status, "note": "kept", "takes_over": list(takes_over)},
            task=None if task is None else Task(task, "choice", labels=("a", "b")),
            evaluations=[] if score is None or task is None else [Evaluation(task, "accuracy", score, 10)],
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def publish(hub: Registry) -> Publish:
    def run(name: str = "news", **options: object) -> AdapterRecord:
        return publish_into(hub, name, **options)  # type: ignore[arg-type]

    return run
