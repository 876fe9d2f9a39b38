"""Rows without padding: no token is lost, and losses and gradients are those of padded rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import stir, toy_settings

from adapterhub_cl.adapters.lora import new_adapter, trainable
from adapterhub_cl.answering.unpadded_attention import can_do_without_padding
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.data.unpadded import grouped, unpadded
from adapterhub_cl.objectives.causal_lm import Objective
from adapterhub_cl.training import speed
from adapterhub_cl.training.speed import Speed

PAD = 0
BEGUN = ([5, 6, 7, 8], [5, 6, 9], [11] * 20, [])
ROWS = st.lists(
    st.tuples(st.sampled_from(BEGUN), st.lists(st.integers(5, 40), min_size=2, max_size=9)), min_size=1, max_size=7
)


@given(ROWS)
def test_every_token_is_found_again(parts: list[tuple[list[int], list[int]]]) -> None:
    rows = [[*begun, *own] for begun, own in parts]
    found = unpadded(rows, PAD)
    for number, row in enumerate(rows):
        at = found.places[number, : len(row)]
        assert found.input_ids[0, at].tolist() == row
        assert found.positions[0, at].tolist() == list(range(len(row)))
    members = sorted(row for group, _ in grouped(rows) for row in group)
    assert members == list(range(len(rows)))
    last = found.groups[-1].end
    assert last <= sum(map(len, rows))
    assert found.input_ids.shape[1] == -(-last // 32) * 32
    for group in found.groups:
        assert torch.equal(group.own.flatten()[group.back], torch.arange(group.start + group.shared, group.end))


def test_two_tasks_are_two_groups() -> None:
    rows = [[*range(100, 150), k, k] for k in range(4)] + [[*range(200, 260), k, k] for k in range(4)]
    assert sorted((len(group), shared) for group, shared in grouped(rows)) == [(4, 50), (4, 60)]
    alike = [[*range(100, 150), k % 2, 60 + k] for k in range(4)]  # one more token is not worth a group
    assert grouped(alike) == [([0, 2, 1, 3], 50)]
    assert grouped([[1, 2, 3], [1, 2, 3]]) == [([0, 1], 2)], "a row keeps a token of its own"
    assert grouped([[1], [1, 2]]) == [([0, 1], 0)]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_are_those_of_padded_rows(load_pico: Callable[..., Any], kind: str, attention: str) -> None:
    base = load_pico(kind)
    rows = [Tokens((1, 50, 51, 52, *range(60, 60 + n)), (70 + n, 2)) for n in (0, 1, 5, 9)]
    rows += [Tokens((1, *range(80, 120)), (n, 2)) for n in (30, 31)] + [Tokens((33, 34), (35,))]
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        stir(model)
        assert can_do_without_padding(model.get_base_model(), 64)
        found: dict[bool, tuple[torch.Tensor, list[torch.Tensor]]] = {}
        for padding in (True, False):
            batch = collate(rows, range(len(rows)), PAD, padding=padding, row_weights=[1, 2, 1, 1, 0.5, 1, 1])
            with speed.use(model, Speed(attention, padding=padding)):
                losses = Objective().losses(model, batch)
                gradients = torch.autograd.grad(losses.sum(), list(trainable(model).values()))
            found[padding] = losses.detach(), list(gradients)
    torch.testing.assert_close(found[False][0], found[True][0], atol=1e-5, rtol=1e-5)
    for mine, plain in zip(found[False][1], found[True][1], strict=True):
        assert (mine - plain).norm() <= 1e-5 * plain.norm() + 1e-9


def test_padded_rows_answer_as_before(load_pico: Callable[..., Any]) -> None:
    """What is evaluated between the epochs of a run without padding is padded."""
    base = load_pico()
    ids, mask = torch.tensor([[1, 40, 50, 60], [1, 41, PAD, PAD]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model, torch.no_grad():
        right = model(input_ids=ids, attention_mask=mask).logits
        for attention in ("sdpa", "eager"):
            with speed.use(model, Speed(attention, padding=False)):
                found = model(input_ids=ids, attention_mask=mask).logits
            torch.testing.assert_close(found[mask.bool()], right[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bloom", "mistral"])
def test_some_bases_need_padding(load_pico: Callable[..., Any], kind: str) -> None:
    model = load_pico(kind).model
    if kind == "mistral":
        model.config.sliding_window = 16
    assert not can_do_without_padding(model, 64)
