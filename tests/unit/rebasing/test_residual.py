"""`rebase --port-residual`: a version with the difference of two bases in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import ANIMALS, COLOURS, QUICK, Notes, data, new_hub
from safetensors.torch import load_file, save_file

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases.same_weights import tensor_places
from adapterhub_cl.rebasing import porting

LEARNED: dict[str, Any] = {**QUICK, "epochs": 8, "kind": "choice"}


def changed(base: Path, to: Path, rank: int, size: float) -> str:
    """A base with an update of a rank in each matrix of its layers, so many times as large as they are."""
    shutil.copytree(base, to)
    torch.manual_seed(0)
    file = to / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and any(part.isdigit() for part in name.split(".")):
            update = torch.randn(tensor.shape[0], rank) @ torch.randn(rank, tensor.shape[1])
            tensors[name] = tensor + size * tensor.norm() / update.norm() * update
    save_file(tensors, file, metadata={"format": "pt"})
    return str(to)


@pytest.mark.parametrize("kind", ["bert", "bert_body", "llama", "gpt2"])
def test_it_answers_as_on_the_old_base(pico_path: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    hub = new_hub(tmp_path / "old", pico_path(kind))
    hub.add_task("colours", data(tmp_path, COLOURS), eval=data(tmp_path, COLOURS, 24, 1), **LEARNED)
    base, notes = changed(pico_path(kind), tmp_path / "base", 2, 5.0), Notes()
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "port_residual": True, "reporter": notes}
    [moved] = hub.rebase(base, **asked).tasks
    assert (moved.source, moved.state, moved.rows, moved.new_score) == ("residual", "moved", 0, moved.old_score)
    new = AdapterHub.open(tmp_path / "new", dtype="fp32")
    record = new.get("colours@v1")
    assert record.manifest["rebased_from"]["difference_held"] == pytest.approx(1.0, abs=1e-4)
    assert record.rank == 4 + 2
    card = (record.path / "README.md").read_text()
    assert new.base.fingerprint in card
    assert hub.base.fingerprint not in card
    assert record.manifest["base"]["fingerprint"] == new.base.fingerprint
    texts = ["red apple stone 7", "green river house 8", "blue cloud table 9"]
    before, after = hub.predict(texts, task="colours"), new.predict(texts, task="colours")
    for one, other in zip(before, after, strict=True):
        assert other.prediction == one.prediction
        assert other.confidence == pytest.approx(one.confidence, abs=2e-3)
    assert new.verify() == []
    assert not (tmp_path / "new/rebase/colours/residual").exists()
    assert any("is used with the difference of the bases in it" in said for said in notes.said)


def test_it_is_tried_after_the_version_as_it_is(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    hub.add_task("colours", data(tmp_path, COLOURS), eval=data(tmp_path, COLOURS, 24, 1), **LEARNED)
    base, notes = changed(pico_path("bert"), tmp_path / "base", 2, 2.0), Notes()
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "port": True, "port_residual": True, "reporter": notes}
    planned = hub.rebase(base, **asked, dry_run=True).tasks[0]
    assert planned.notes[-1] == "colours@v1 is first tried as it is, then with the difference of the bases in it"
    [moved] = hub.rebase(base, **asked, min_retention=0.99).tasks
    assert moved.source == "residual"
    assert any(
        "cannot be used as it is" in said and "so it is tried with the difference" in said for said in notes.said
    )


@pytest.mark.parametrize(("other", "why"), [("distilbert", "do not have the layer"), ("wide", "another shape")])
def test_other_layers_are_learned_again(pico_path: Callable[[str], Path], tmp_path: Path, other: str, why: str) -> None:
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    hub.add_task("colours", data(tmp_path, COLOURS), eval=data(tmp_path, COLOURS, 24, 1), **LEARNED)
    base = wider(pico_path("bert"), tmp_path / "wide") if other == "wide" else str(pico_path(other))
    notes = Notes()
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "port_residual": True, "min_retention": 0, "epochs": 1}
    [moved] = hub.rebase(base, **asked, reporter=notes).tasks
    assert (moved.source, moved.state) == ("data", "moved")
    assert any(why in said and "so its task is learned again" in said for said in notes.said)


def wider(base: Path, to: Path) -> str:
    """A model of the same kind with larger intermediate layers."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    shutil.copytree(base, to)
    config = AutoConfig.from_pretrained(base)
    config.intermediate_size *= 2
    AutoModelForMaskedLM.from_config(config).save_pretrained(to)
    return str(to)


@pytest.mark.parametrize("way", ["port", "port_residual"])
def test_a_version_of_several_tasks_is_learned_again(
    pico_path: Callable[[str], Path], tmp_path: Path, way: str
) -> None:
    """It has tasks in the manifest that the new hub may not know, and was not measured on them."""
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    hub.add_task("colours", data(tmp_path, COLOURS), eval=data(tmp_path, COLOURS, 24, 1), **LEARNED)
    shared: dict[str, Any] = {**LEARNED, "strategy": "sequential", "max_forgetting": 1.0}
    shared.pop("rank")
    hub.add_task("animals", data(tmp_path, ANIMALS), eval=data(tmp_path, ANIMALS, 24, 1), **shared)
    assert hub.registry.serving() == {"animals": "animals@v1", "colours": "animals@v1"}
    base = changed(pico_path("bert"), tmp_path / "base", 2, 0.1)
    found = hub.rebase(base, to=str(tmp_path / "new"), min_retention=0, epochs=1, **{way: True}).tasks
    assert [(one.task, one.source, one.state) for one in found] == [
        ("animals", "data", "moved"),
        ("colours", "data", "moved"),
    ]
    new = AdapterHub.open(tmp_path / "new")
    assert new.registry.serving() == {"animals": "animals@v1", "colours": "colours@v1"}


def test_what_a_killed_rebase_left_is_removed(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    hub.add_task("colours", data(tmp_path, COLOURS), eval=data(tmp_path, COLOURS, 24, 1), **LEARNED)
    base, to = changed(pico_path("bert"), tmp_path / "base", 2, 1.0), str(tmp_path / "new")
    hub.rebase(base, to=to, port_residual=True)
    left, outside = tmp_path / "new/rebase/colours/residual", tmp_path / "outside"
    outside.mkdir()
    for make in (left.mkdir, left.touch, lambda: left.symlink_to(outside)):
        make()
        hub.rebase(base, to=to)
        assert not left.exists()
        assert not left.is_symlink()
    assert outside.is_dir()


def test_the_old_base_must_be_the_one_that_the_hub_was_made_on(
    pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pico_path("bert"), tmp_path / "first")
    hub = new_hub(tmp_path / "old", tmp_path / "first")
    hub.add_task("colours", data(tmp_path, COLOURS), eval=data(tmp_path, COLOURS, 24, 1), **LEARNED)
    base, notes = changed(pico_path("bert"), tmp_path / "base", 2, 1.0), Notes()
    port = porting.Porter.port

    def after_a_change(*given: Any) -> Any:
        shutil.copy(tmp_path / "base/model.safetensors", tmp_path / "first/model.safetensors")
        return port(*given)

    monkeypatch.setattr(porting.Porter, "port", after_a_change)
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "port_residual": True, "min_retention": 0, "epochs": 1}
    [moved] = hub.rebase(base, **asked, reporter=notes).tasks
    assert moved.source == "data"
    assert any("have changed since the old hub was made" in said for said in notes.said)


def test_only_the_files_that_are_loaded_are_compared(tmp_path: Path) -> None:
    one, other = torch.zeros(2, 2), torch.ones(2, 2)
    save_file({"a.weight": other}, tmp_path / "zz-old.safetensors")
    save_file({"a.weight": one}, tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}))
    assert tensor_places(tmp_path)["a.weight"].name == "model-00001-of-00001.safetensors"
    save_file({"a.weight": one}, tmp_path / "model.safetensors")
    assert tensor_places(tmp_path)["a.weight"].name == "model.safetensors"
