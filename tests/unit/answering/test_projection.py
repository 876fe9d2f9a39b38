"""Logits at chosen positions are those of the full forward, whatever the architecture and the wrapping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from toys import stir, toy_settings, toy_tokens

from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.answering.projection import at_positions
from adapterhub_cl.data.batches import collate
from adapterhub_cl.objectives.causal_lm import Objective

ARCHITECTURES = ("llama", "qwen2", "mistral", "gpt2", "bloom")


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_logits_at_positions_equal_the_full_forward(load_pico: Callable[..., Any], kind: str) -> None:
    base = load_pico(kind)
    ids = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    rows, columns = torch.tensor([0, 0, 2, 1]), torch.tensor([8, 0, 4, 7])
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        stir(model)
        model.eval()
        full = model(input_ids=ids).logits
        with at_positions(model, rows, columns):
            some = model(input_ids=ids).logits
        again = model(input_ids=ids).logits
        with model.disable_adapter():
            bare = model(input_ids=ids).logits
    with at_positions(base.model, rows, columns):
        plain = base.model(input_ids=ids).logits
    assert some.shape == (1, 4, 300)
    torch.testing.assert_close(some[0], full[rows, columns], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain[0], bare[rows, columns], atol=1e-5, rtol=1e-5)
    assert torch.equal(again, full), "the hook is gone after the block"
    assert (full - bare).abs().max() > 1e-3, "the adapter does something, so the comparison means something"


@torch.no_grad()
def test_hook_is_removed_when_the_forward_fails(pico_base: Any) -> None:
    ids = torch.tensor([[1, 5, 9]])
    before = pico_base.model(input_ids=ids).logits
    with (
        pytest.raises(IndexError),
        at_positions(pico_base.model, torch.tensor([7]), torch.tensor([0])),
    ):
        pico_base.model(input_ids=ids)
    assert torch.equal(pico_base.model(input_ids=ids).logits, before)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_losses_equal_the_stock_loss_and_its_gradient(load_pico: Callable[..., Any], kind: str) -> None:
    base = load_pico(kind)
    examples = toy_tokens(5)
    batch = collate(examples, range(5), 0)
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        stir(model)
        model.eval()
        parameters = [p for p in model.parameters() if p.requires_grad]
        ours = Objective().losses(model, batch)
        stock = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
        shifted = functional.cross_entropy(
            stock.logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], ignore_index=-100, reduction="none"
        )
        ours_gradient = torch.autograd.grad(ours.mean(), parameters)
        stock_gradient = torch.autograd.grad(stock.loss, parameters)
    assert ours.dtype == torch.float32
    assert ours.shape == (sum(len(e.answer) for e in examples),)
    torch.testing.assert_close(ours, shifted[batch.labels[:, 1:] != -100], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.mean(), stock.loss, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(ours_gradient, stock_gradient, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
