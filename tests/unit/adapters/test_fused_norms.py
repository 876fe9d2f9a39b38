"""RMSNorm's shorter backward pass gives the same values and gradients, and only where the formula fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from toys import toy_settings
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.adapters.fused_norms import fused_norms
from adapterhub_cl.adapters.lora import new_adapter, trainable


def norm_of(kind: Any, width: int, dtype: torch.dtype, seed: int = 0) -> Any:
    norm = kind(width).to(dtype)
    draw = torch.Generator().manual_seed(seed)
    norm.weight.data = torch.randn(width, generator=draw).to(dtype)
    return norm.requires_grad_(False)


def results(norm: Any, x: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(slope)
    assert x.grad is not None
    return y.detach(), x.grad


@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 33),
    size=st.floats(1e-3, 1e3),
    seed=st.integers(0, 9),
    kind=st.sampled_from([LlamaRMSNorm, Qwen3RMSNorm]),
)
@example(rows=1, width=1, size=1.0, seed=0, kind=LlamaRMSNorm)
def test_values_and_gradients_are_those_of_the_module(rows: int, width: int, size: float, seed: int, kind: Any) -> None:
    norm = norm_of(kind, width, torch.float32, seed)
    draw = torch.Generator().manual_seed(seed)
    x, slope = (torch.randn(rows, width, generator=draw) * s for s in (size, 1.0))
    value, gradient = results(norm, x, slope)
    with fused_norms(torch.nn.Sequential(norm)) as count:
        assert count == 1
        other, fused = results(norm, x, slope)
    assert torch.equal(value, other)
    # The gradient is a difference of terms of this size, which are equal at width 1: rounding is relative to them.
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    assert torch.allclose(gradient, fused, rtol=1e-5, atol=1e-5 * float((slope * norm.weight * scale).abs().max()))
    assert "forward" not in norm.__dict__


def test_half_precision_and_another_type_of_the_weight() -> None:
    draw = torch.Generator().manual_seed(0)
    x, slope = (torch.randn(6, 64, generator=draw).bfloat16() for _ in range(2))
    for dtype in (torch.bfloat16, torch.float32):
        norm = norm_of(LlamaRMSNorm, 64, dtype)
        value, gradient = results(norm, x, slope.to(norm(x).dtype))
        with fused_norms(torch.nn.Sequential(norm)) as count:
            assert count == 1
            other, fused = results(norm, x, slope.to(other_type := norm(x).dtype))
        assert other_type == value.dtype
        assert torch.equal(value, other)
        assert fused.dtype == torch.bfloat16
        assert torch.allclose(gradient.float(), fused.float(), rtol=2e-2, atol=2e-2)


def test_norms_of_one_class_with_and_without_a_weight() -> None:
    width, draw = 8, torch.Generator().manual_seed(0)
    norms = [norm_of(Gemma4RMSNorm, width, torch.float32), Gemma4RMSNorm(width, with_scale=False)]
    x, slope = torch.randn(3, width, generator=draw), torch.randn(3, width, generator=draw)
    before = [results(norm, x, slope) for norm in norms]
    for order in (norms, norms[::-1]):
        with fused_norms(torch.nn.Sequential(*order)):
            after = [results(norm, x, slope) for norm in norms]
            assert "forward" not in norms[1].__dict__
        for (value, gradient), (other, shorter) in zip(before, after, strict=True):
            assert torch.equal(value, other)
            assert torch.allclose(gradient, shorter, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Gemma3RMSNorm])
def test_another_formula_is_left_alone(kind: Any) -> None:
    norm = norm_of(kind, 8, torch.float32)
    with fused_norms(torch.nn.Sequential(norm)) as count:
        assert count == 0
        assert "forward" not in norm.__dict__


def test_a_norm_that_is_trained_is_left_alone() -> None:
    norm = norm_of(LlamaRMSNorm, 8, torch.float32).requires_grad_(True)
    with fused_norms(torch.nn.Sequential(norm)) as count:
        assert count == 0


def test_a_model_that_is_only_served_keeps_its_own_norms(pico_base: Any) -> None:
    def changed(model: Any) -> int:
        return sum("forward" in part.__dict__ for part in model.modules() if isinstance(part, LlamaRMSNorm))

    with new_adapter(pico_base, toy_settings(), "CAUSAL_LM") as model:
        with fused(model, torch.float32):
            assert changed(model) > 0
        for parameter in trainable(model).values():
            parameter.requires_grad_(False)
        with fused(model, torch.float32):
            assert changed(model) == 0
