"""`rebase --port-residual`: a version with the difference of two bases in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import COLOURS, QUICK, Notes, data, new_hub
from safetensors.torch import load_file, save_file

from adapterhub_cl import AdapterHub

LEARNED: dict[str, Any] = {**QUICK, "epochs": 8, "kind": "choice"}


def changed(base: Path, to: Path, rank: int, size: float) -> str:
    """A base with an update of a rank in each of its square or wider matrices, so many times as large as they are."""
    shutil.copytree(base, to)
    torch.manual_seed(0)
    file = to / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in name and "lm_head" not in name and "classifier" not in name:
            update = torch.randn(tensor.shape[0], rank) @ torch.randn(rank, tensor.shape[1])
            tensors[name] = tensor + size * tensor.norm() / update.norm() * update
    save_file(tensors, file, metadata={"format": "pt"})
    return str(to)


@pytest.mark.parametrize("kind", ["bert", "bert_body", "llama", "gpt2"])
def test_it_answers_as_on_the_old_base(pico_path: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    hub = new_hub(tmp_path / "old", pico_path(kind))
    hub.add_task("colours", data(tmp_path, COLOURS), eval=data(tmp_path, COLOURS, 24, 1), **LEARNED)
    base, notes = changed(pico_path(kind), tmp_path / "base", 2, 1.0), Notes()
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "port_residual": True, "reporter": notes}
    [moved] = hub.rebase(base, **asked).tasks
    assert (moved.source, moved.state, moved.rows, moved.new_score) == ("residual", "moved", 0, moved.old_score)
    new = AdapterHub.open(tmp_path / "new")
    record = new.get("colours@v1")
    assert record.manifest["rebased_from"]["difference_held"] == pytest.approx(1.0, abs=1e-4)
    assert record.rank <= 4 + 2
    assert record.manifest["base"]["fingerprint"] == new.base.fingerprint
    texts = ["red apple stone 7", "green river house 8", "blue cloud table 9"]
    before, after = hub.predict(texts, task="colours"), new.predict(texts, task="colours")
    for one, other in zip(before, after, strict=True):
        assert other.prediction == one.prediction
        assert other.confidence == pytest.approx(one.confidence, abs=0.01)
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


def test_other_layers_are_learned_again(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    hub.add_task("colours", data(tmp_path, COLOURS), eval=data(tmp_path, COLOURS, 24, 1), **LEARNED)
    notes = Notes()
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "port_residual": True, "min_retention": 0, "epochs": 1}
    [moved] = hub.rebase(str(pico_path("distilbert")), **asked, reporter=notes).tasks
    assert (moved.source, moved.state) == ("data", "moved")
    assert any("do not have the layer" in said and "so its task is learned again" in said for said in notes.said)
