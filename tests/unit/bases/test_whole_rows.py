"""The output layer is never given a slice with gaps, which some machines multiply row by row and very slowly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from toys import toy_settings

from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.answering import chunked_loss
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.objectives.causal_lm import Objective

IDS = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def given(pico_base: Any) -> Iterator[list[torch.Tensor]]:
    """What the output layer was given, one tensor a call."""
    found: list[torch.Tensor] = []
    head = pico_base.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, arguments, output: found.append(arguments[0]))
    yield found
    hook.remove()


def gaps(hidden: torch.Tensor) -> bool:
    return hidden.dim() > 2 and hidden.stride(0) != hidden.stride(1) * hidden.shape[1]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("last", [1, 2])
@torch.no_grad()
def test_the_last_positions_are_read_without_gaps(
    pico_base: Any, given: list[torch.Tensor], rows: int, last: int
) -> None:
    whole = pico_base.model(IDS[:rows]).logits
    few = pico_base.model(IDS[:rows], logits_to_keep=last).logits
    assert torch.allclose(few, whole[:, -last:], atol=1e-5)
    assert given[1].shape[:2] == (rows, last)
    assert not any(map(gaps, given))


def test_generate_reads_prompts_without_gaps(pico_base: Any, given: list[torch.Tensor]) -> None:
    mask = torch.ones_like(IDS)
    pico_base.model.generate(IDS, attention_mask=mask, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert len(given) == 2
    assert not any(map(gaps, given))


def test_losses_in_chunks_read_their_first_position_without_gaps(
    pico_base: Any, given: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 1)
    rows = [Tokens((1, 50, 51, *range(60, 60 + n)), (70, 80, 81, 2)) for n in (0, 5)]
    with new_adapter(pico_base, toy_settings(rank=4), "CAUSAL_LM") as model:
        Objective().losses(model, collate(rows, [0, 1], 0))
    assert given
    assert not any(map(gaps, given))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@torch.no_grad()
def test_a_quantised_base_reads_without_gaps(load_pico: Callable[..., Any], quantization: str) -> None:
    found: list[torch.Tensor] = []
    model = load_pico("llama", quantization).model
    model.get_output_embeddings().register_forward_hook(lambda _, arguments, output: found.append(arguments[0]))
    model(IDS, logits_to_keep=1)
    assert found
    assert not any(map(gaps, found))
