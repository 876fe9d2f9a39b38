"""What routers look at: mean and maximum over the tokens, without a text's neighbours and padding showing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapterhub_cl.bases.hidden import CLIP, pool, pooled


def test_padding_counts_for_nothing() -> None:
    states = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    spoiled = states.clone()
    spoiled[0, 3:] = 1e4
    assert torch.equal(pool(states, mask), pool(spoiled, mask))
    assert torch.allclose(pool(states, mask)[:1], pool(states[:1, :3], mask[:1, :3]), atol=1e-6)


def test_the_halves_are_mean_and_maximum() -> None:
    states = torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(2)) + 0.1
    found = pool(states, torch.ones(1, 4))
    for half, plain in ((found[:, :6], states.mean(1)), (found[:, 6:], states.amax(1))):
        assert torch.nn.functional.cosine_similarity(half, plain).item() == pytest.approx(1.0, abs=1e-6)
        assert half.square().mean().item() == pytest.approx(1.0, abs=1e-5)


def test_a_dimension_that_dwarfs_the_rest_does_not_drown_it() -> None:
    states = torch.rand(2, 3, 64, generator=torch.Generator().manual_seed(3)) + 0.5
    states[..., 7] = 5000.0
    found = pool(states, torch.ones(2, 3))
    rest = found[:, :64].abs().median(1).values
    assert (found[:, 7] / rest).tolist() == pytest.approx([CLIP, CLIP], rel=1e-5)


def test_states_of_zeros_stay_finite() -> None:
    assert pool(torch.zeros(1, 2, 4), torch.ones(1, 2)).tolist() == [[0.0] * 8]


def test_texts_do_not_depend_on_their_batch(pico_base: Any) -> None:
    texts = ["one two three", "four", "", "five six seven eight nine ten"]
    together = pooled(pico_base, texts, 0)
    width = pico_base.model.config.hidden_size
    assert together.shape == (4, 2 * width)
    for text, row in zip(texts, together, strict=True):
        assert torch.allclose(pooled(pico_base, [text], 0)[0], row, atol=1e-4)
    assert pooled(pico_base, [], 0).shape == (0, 2 * width)
