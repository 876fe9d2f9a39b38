"""What was stored lies on the CPU; what is trained may lie elsewhere. The meta device stands for a GPU: it refuses to
compute with tensors of another device likewise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from adapterhub_cl import strategies
from adapterhub_cl.strategies import MEMORY, build

A, B = "layer.lora_A.default.weight", "layer.lora_B.default.weight"


def stage_on_meta(parent: Path | None = None) -> Any:
    parameters = {
        A: torch.nn.Parameter(torch.empty(2, 6, device="meta")),
        B: torch.nn.Parameter(torch.empty(6, 2, device="meta")),
    }
    return SimpleNamespace(parameters=parameters, parent=parent, resumed=False, fresh=0)


def test_inflora_takes_its_memory_to_the_adapter(tmp_path: Path, monkeypatch: Any) -> None:
    save_file({f"inflora.{A}": torch.eye(6)[:, :2].contiguous()}, tmp_path / MEMORY)
    assert strategies.memory(tmp_path, "inflora")[A].device.type == "cpu"
    strategy: Any = build("inflora").parts["inflora"]
    monkeypatch.setattr(strategy, "_grams", lambda _: {A: torch.empty(6, 6, device="meta")})
    strategy.begin(stage_on_meta(tmp_path))
    assert strategy.bases[A].device.type == "meta"


def test_a_resumed_teacher_of_sdft_goes_to_the_adapter() -> None:
    strategy: Any = build("sdft").parts["sdft"]
    stage = stage_on_meta()
    strategy.begin(stage)
    values = {"rows": 3, "left_out": 1, "written_tokens": 40}
    strategy.restore({A: torch.zeros(2, 6), B: torch.zeros(6, 2)}, values)
    strategy.after_step(stage)
    assert {tensor.device.type for tensor in strategy.teacher.values()} == {"meta"}
    assert strategy.summary() == values
