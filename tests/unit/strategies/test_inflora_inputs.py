"""What InfLoRA takes for a task's inputs: tokens, never padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import new_hub, write
from safetensors.torch import load_file

from adapterhub_cl.bases.hidden import at_tokens


def test_inputs_at_tokens() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    kept = torch.tensor([[0.0, 1.0], [2.0, 3.0], [6.0, 7.0]])
    assert torch.equal(at_tokens(x, mask), kept)
    assert torch.equal(at_tokens(x.reshape(6, 2), mask), kept)
    further = torch.cat([x.transpose(0, 1), torch.full((2, 2, 2), 9.0)])
    assert torch.equal(at_tokens(further, mask), kept)
    pooled = torch.ones(2, 4)
    assert torch.equal(at_tokens(pooled, mask), pooled)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_fixed_part_does_not_depend_on_how_rows_are_batched(
    pico_path: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """A is made of the inputs before anything is trained; batches of one row have no padding, those of eight have."""
    words = ["red", "red apple on a green stone by the long grey wall", "blue", "one more blue stone over there"]
    rows = [{"text": f"{word} {k}", "label": "ab"[k % 2]} for k in range(4) for word in words]
    data = write(tmp_path / "rows.jsonl", rows)
    found: list[dict[str, Any]] = []
    for size in (1, 8):
        hub = new_hub(tmp_path / f"hub-{size}", pico_path(kind))
        made = hub.add_task(
            "colours", data, strategy="inflora", batch_size=size, epochs=1, max_length=64, rank=2, replay="none",
            dev_share=0.0, learning_rate=1e-9,
        )  # fmt: skip
        tensors = load_file(made.path / "adapter_model.safetensors")
        found.append({name: tensor for name, tensor in tensors.items() if "lora_A" in name})
    assert found[0].keys() == found[1].keys() != set()
    for name, alone in found[0].items():
        together = found[1][name]
        torch.testing.assert_close(alone.T @ alone, together.T @ together, atol=2e-3, rtol=0, msg=name)
