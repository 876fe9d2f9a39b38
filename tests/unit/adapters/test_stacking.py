"""A new LoRA over a frozen one: what is trained, what is stored, and that both agree with plain PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from toys import distance, stir, toy_settings, train
from transformers import AutoModelForCausalLM

from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.adapters.lora import new_adapter, save_adapter, trainable
from adapterhub_cl.adapters.stacking import BENEATH
from adapterhub_cl.errors import AdapterError, UsageError

IDS = torch.tensor([[1, 20, 30, 40], [1, 25, 35, 45]])


def stored(base: Any, folder: Path, seed: int, **changes: Any) -> Path:
    with new_adapter(base, toy_settings(**changes), "CAUSAL_LM") as model:
        stir(model, seed=seed)
        save_adapter(model, folder, "pico")
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize(
    ("below", "above"),
    [
        ({"rank": 2}, {"rank": 3}),
        ({"rank": 4, "rslora": True}, {"rank": 2, "alpha": 3.0}),
        ({"rank": 2, "target_modules": "q_proj,down_proj"}, {"rank": 3, "target_modules": "q_proj,v_proj"}),
        ({"rank": 2, "layers": "1"}, {"rank": 2}),
    ],
)
def test_what_is_stored_answers_as_both_together(
    load_pico: Callable[..., Any],
    pico_path: Callable[[str], Path],
    tmp_path: Path,
    quantization: str,
    below: dict[str, Any],
    above: dict[str, Any],
) -> None:
    base = load_pico("llama", quantization)
    first = stored(base, tmp_path / "first", 1, **below)
    with new_adapter(base, toy_settings(**above), "CAUSAL_LM", beneath=first) as model:
        only = trainable(model)
        assert all(".default." in name for name in only)
        before = {n: p.detach().clone() for n, p in model.named_parameters() if f".{BENEATH}." in n}
        assert before
        model.eval()
        nothing_yet = logits(model)  # a fresh adapter's B is zero
        stir_own(model)
        both = logits(model)
        with fused(model, base.dtype) as layers:
            assert layers
            torch.testing.assert_close(logits(model), both, atol=2e-4, rtol=1e-3)
        save_adapter(model, tmp_path / "sum", "pico")
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    with torch.no_grad():
        alone = PeftModel.from_pretrained(base.model, tmp_path / "first")
        torch.testing.assert_close(logits(alone.eval()), nothing_yet, atol=1e-4, rtol=1e-3)
        alone.unload()
        again = PeftModel.from_pretrained(base.model, tmp_path / "sum").eval()
        torch.testing.assert_close(logits(again), both, atol=2e-4, rtol=1e-3)
        again.unload()
    if quantization == "none":
        plain = AutoModelForCausalLM.from_pretrained(pico_path("llama"), dtype=torch.float32)
        theirs = PeftModel.from_pretrained(plain, tmp_path / "sum").eval()
        torch.testing.assert_close(logits(theirs), both, atol=2e-4, rtol=1e-3)


def stir_own(model: Any) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name and ".default." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_fused_gradients_over_a_frozen_adapter_are_those_of_peft(pico_base: Any, tmp_path: Path) -> None:
    first = stored(pico_base, tmp_path / "first", 1)
    found = []
    for fuse in (False, True):
        outcome = train(pico_base, toy_settings(), beneath=first, fuse=fuse)
        found.append(outcome.weights)
    assert all(".default." in name for name in found[0])
    assert distance(found[0], found[1]) < 2e-3


def test_dora_cannot_be_added_up(pico_base: Any, tmp_path: Path) -> None:
    plain, dora = stored(pico_base, tmp_path / "a", 1), stored(pico_base, tmp_path / "b", 1, dora=True)
    with (
        pytest.raises(UsageError, match="--dora"),
        new_adapter(pico_base, toy_settings(dora=True), "CAUSAL_LM", None, plain),
    ):
        pass
    with pytest.raises(AdapterError, match="DoRA"), new_adapter(pico_base, toy_settings(), "CAUSAL_LM", None, dora):
        pass
    assert not any("lora" in name for name, _ in pico_base.model.named_parameters()), "the base is bare again"


def test_an_adapter_of_another_base_is_refused(load_pico: Callable[..., Any], pico_base: Any, tmp_path: Path) -> None:
    other = load_pico("qwen2")
    foreign = stored(other, tmp_path / "foreign", 1)
    with (
        pytest.raises(AdapterError, match="does not fit"),
        new_adapter(pico_base, toy_settings(), "CAUSAL_LM", None, foreign),
    ):
        pass
    assert not any("lora" in name for name, _ in pico_base.model.named_parameters()), "the base is bare again"
