"""Losses in chunks: values and gradients are those of all logits at once, and a base that changes its logits is left
alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import stir, toy_settings

from adapterhub_cl.adapters.lora import new_adapter, trainable
from adapterhub_cl.answering import chunked_loss
from adapterhub_cl.answering.chunked_loss import is_large
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.objectives.causal_lm import Objective

ROWS = [Tokens((1, 50, 51, *range(60, 60 + n)), (70 + n, 80, 81, 2)) for n in (0, 1, 5, 9)]


def loss_and_gradients(model: Any, rows: list[Tokens], **options: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    losses = Objective().losses(model, collate(rows, list(range(len(rows))), 0, **options))
    found = torch.autograd.grad((losses * torch.linspace(0.5, 2, len(losses))).sum(), list(trainable(model).values()))
    return losses.detach(), list(found)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("chunk", [1, 3000, 12000])
def test_losses_and_gradients_are_those_of_all_logits_at_once(
    load_pico: Callable[..., Any], kind: str, padding: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_pico(kind)
    with new_adapter(base, toy_settings(rank=4), "CAUSAL_LM") as model:
        stir(model)
        if not padding:
            from adapterhub_cl.answering.unpadded_attention import NAMES

            model.get_base_model().set_attn_implementation(NAMES["eager"])
        options = {"padding": padding, "row_weights": [1.0, 0.5, 2.0, 0.0]}
        assert not is_large(model, 16)
        plain, wanted = loss_and_gradients(model, ROWS, **options)
        monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", chunk)
        assert is_large(model, 16)
        chunked, found = loss_and_gradients(model, ROWS, **options)
        base.model.set_attn_implementation("sdpa")
    assert torch.allclose(chunked, plain, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-9


@given(
    st.integers(1, 9), st.integers(2, 40), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float16]),
    st.booleans(),
)  # fmt: skip
def test_any_split_gives_the_same(positions: int, vocabulary: int, seed: int, dtype: torch.dtype, biased: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, 8, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, 8, generator=generator)
    bias = torch.randn(vocabulary, generator=generator) if biased else None
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    scales = torch.rand(positions, generator=generator)
    whole = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(hidden, weight, bias), targets, reduction="none"
    )
    (wanted,) = torch.autograd.grad((whole * scales).sum(), hidden)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_loss, "CHUNK_BYTES", 4 * vocabulary * (1 + seed % 3))
        found = chunked_loss._ChunkedLosses.apply(hidden, weight, bias, targets, dtype)  # type: ignore[no-untyped-call]
        (gradient,) = torch.autograd.grad((found * scales).sum(), hidden)
    near = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(found, whole, atol=near, rtol=near)
    assert torch.allclose(gradient, wanted, atol=near, rtol=near)


def test_a_base_that_scales_its_logits_is_computed_whole(
    load_pico: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_pico("llama")
    forward = type(base.model).forward

    def scaled(self: Any, *inputs: Any, **options: Any) -> Any:
        found = forward(self, *inputs, **options)
        found.logits = found.logits * 0.25
        return found

    with new_adapter(base, toy_settings(rank=4), "CAUSAL_LM") as model:
        stir(model)
        monkeypatch.setattr(type(base.model), "forward", scaled)
        plain, wanted = loss_and_gradients(model, ROWS)
        monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 1)
        monkeypatch.setattr(chunked_loss, "_LINEAR", type(chunked_loss._LINEAR)())
        chunked, found = loss_and_gradients(model, ROWS)
        assert not is_large(model, 16), "it is known now"
    assert torch.equal(chunked, plain)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_no_tensor_of_all_logits_is_kept(load_pico: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_pico("llama")
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    sizes: list[int] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        of_positions = tensor.dim() > 1 and tensor.shape[-1] == vocabulary and tensor.shape[-2] != base.width
        sizes.append(tensor.numel() if of_positions else 0)
        return tensor

    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 4 * vocabulary * 2)
    with (
        new_adapter(base, toy_settings(rank=4), "CAUSAL_LM") as model,
        torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor),
    ):
        Objective().losses(model, collate(ROWS, [0, 1, 2, 3], 0))
    assert max(sizes) <= vocabulary * 1
