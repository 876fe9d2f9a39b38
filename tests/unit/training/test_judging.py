"""What a version that learns a known task anew is compared on with the one that serves it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapterhub_cl.data.columns import Examples, read_examples
from adapterhub_cl.registry import Registry
from adapterhub_cl.training.judging import Judge
from adapterhub_cl.training.material import Material
from adapterhub_cl.types import AdapterRecord, BaseInfo, Example, Task

MOOD = Task("mood", "choice", instruction="Good or bad?", labels=("bad", "good"), metric="accuracy")


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": "good"}) + "\n" for text in texts))
    return path


@pytest.fixture
def hub(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "hub", BaseInfo("tiny", "f" * 64, quantization="none"))


def publish(hub: Registry, task: Task = MOOD, *, held: Examples | None = None, status: str = "active") -> AdapterRecord:
    told = None if held is None else {"source": held.source, "sha256": held.sha256, "examples": len(held)}
    with hub.new_draft("mood") as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
        sample = {"input": "a sample", "output": "good", "instruction": task.instruction}
        (draft.path / "replay.jsonl").write_text(json.dumps(sample) + "\n")
        training = {"data": {"source": "gone.jsonl", "columns": {}}, "eval": told, "settings": {"max_length": 64}}
        manifest = {"kind": "trained", "rank": 2, "status": status, "training": training}
        return hub.publish(draft, manifest, task=task, verb="add-task")


def own_probe(hub: Registry, task: Task, held: Examples | None, parent: AdapterRecord | None = None) -> Any:
    """What `Judge` would compare on, of a version that learns a task with this held-out data."""
    judge = Judge.__new__(Judge)
    data = Examples([Example("new", "good")], "text/label", "new.jsonl", "0" * 64, 0, ["new"])
    judge.registry, judge.length = hub, 32
    judge.material = Material(data, held, task, parent)
    judge.request = SimpleNamespace(verb="add-task")  # type: ignore[assignment]
    return judge._own_probe(hub.get(hub.serving()["mood"]))


def test_the_older_version_s_held_out_data_come_first(hub: Registry, tmp_path: Path) -> None:
    old = read_examples(write(tmp_path / "old.jsonl", "one", "two"), None, MOOD.instruction)
    publish(hub, held=old)
    found = own_probe(hub, MOOD, read_examples(write(tmp_path / "new.jsonl", "three")))
    assert (found.data, found.sha256, len(found.examples)) == (old.source, old.sha256, 2)


def test_data_held_out_now_come_before_what_the_older_version_was_trained_on(hub: Registry, tmp_path: Path) -> None:
    first = publish(hub)
    held = read_examples(write(tmp_path / "new.jsonl", "three"))
    assert own_probe(hub, MOOD, held).data == held.source
    assert own_probe(hub, MOOD, None).data == "replay samples of mood@v1"
    assert own_probe(hub, MOOD, held, parent=first).data == "replay samples of mood@v1", "it has learned them too"


def test_each_version_is_asked_as_it_was_taught(hub: Registry) -> None:
    publish(hub)
    publish(hub, replace(MOOD, instruction="Which mood?"), status="rejected")
    assert hub.task("mood") == MOOD, "a rejected version changes nothing of the task that another one serves"
    found = own_probe(hub, replace(MOOD, instruction="Say the mood:", prompt_format="alpaca"), None)
    assert found.task == MOOD
    assert [e.instruction for e in found.examples] == ["Good or bad?"]


@pytest.mark.parametrize("change", [{"metric": "macro_f1"}, {"kind": "generation", "labels": ()}])
def test_scores_of_another_kind_are_not_compared(hub: Registry, change: dict[str, Any]) -> None:
    publish(hub)
    assert own_probe(hub, replace(MOOD, **change), None) is None
