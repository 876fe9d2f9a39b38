"""A run that was stopped goes on with its own settings, in its own type of products, whatever is chosen today."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import COLOURS, data, new_hub

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases import loading
from adapterhub_cl.errors import TrainingInterrupted, UsageError
from adapterhub_cl.training.loop import Loop


def test_it_does(pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_hub(tmp_path / "hub", pico_path("llama"))
    given: dict[str, Any] = {"kind": "choice", "epochs": 2, "rank": 2, "checkpoint_every": 1, "dev_share": 0.0}
    choose, today = loading.choose_dtype, torch.bfloat16

    def chosen(dtype: str, *more: Any) -> tuple[torch.dtype, str]:
        return (today, "chosen today") if dtype == "auto" else choose(dtype, *more)

    def hub(**options: Any) -> AdapterHub:
        return AdapterHub.open(tmp_path / "hub", **options)

    monkeypatch.setattr(loading, "choose_dtype", chosen)
    rows = data(tmp_path, COLOURS, 40)
    whole = hub().add_task("whole", rows, **given)

    step, count = Loop.one_step, 0

    def dying(self: Loop, *asked: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return step(self, *asked)

    monkeypatch.setattr(Loop, "one_step", dying)
    with pytest.raises(TrainingInterrupted):
        hub().add_task("cut", rows, **given)
    monkeypatch.setattr(Loop, "one_step", step)
    today = torch.float32
    with pytest.raises(UsageError, match="this run computed in bf16 when it was stopped"):
        hub(dtype="fp32").add_task("cut", resume=True)
    with pytest.raises(UsageError, match="keeps its settings: --eval, --rank cannot be changed"):
        hub().add_task("cut", rows, resume=True, **{**given, "rank": 3, "eval": str(rows)})
    resumed = hub().add_task("cut", rows, resume=True, **given)  # as it was called before
    assert json.loads((resumed.path / "training.json").read_text())["dtype"] == "bfloat16"
    name = "adapter_model.safetensors"
    assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
