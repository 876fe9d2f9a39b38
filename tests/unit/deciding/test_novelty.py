"""Inputs that are like each other and unlike the known samples have low p-values; others are evenly spread."""

from __future__ import annotations

import pytest
import torch

from adapterhub_cl.deciding.novelty import novelty

DIMS = 24


def cloud(count: int, seed: int, at: int, spread: float = 1.0) -> torch.Tensor:
    """Rows around a place of their own."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.zeros(DIMS)
    centre[at] = 4.0
    return centre + spread * torch.randn(count, DIMS, generator=generator)


KNOWN = {"a": cloud(120, 1, 0), "b": cloud(120, 2, 1)}


def texts(count: int) -> list[str]:
    return [f"text {k}" for k in range(count)]


def test_a_new_cloud_is_found_and_known_ones_are_not() -> None:
    inputs = torch.cat([cloud(40, 3, 0), cloud(40, 4, 1), cloud(30, 5, 2)])
    found = novelty(texts(110), inputs, KNOWN)
    assert found is not None
    assert (found[80:] <= 0.03).float().mean() > 0.8
    assert (found[:80] <= 0.03).float().mean() < 0.08


def test_known_inputs_alone_have_even_p_values() -> None:
    low = []
    for seed in range(10, 16):
        found = novelty(texts(80), torch.cat([cloud(60, seed, 0), cloud(20, seed + 50, 1)]), KNOWN)
        assert found is not None
        low.append(float((found <= 0.05).float().mean()))
    assert sum(low) / len(low) < 0.06


def test_a_text_that_comes_often_is_not_new_for_that() -> None:
    inputs = torch.cat([cloud(40, 3, 0), cloud(1, 8, 0).expand(40, DIMS)])
    found = novelty([*texts(40), *["again"] * 40], inputs, KNOWN)
    assert found is not None
    assert len({float(value) for value in found[40:]}) == 1
    alone = novelty([*texts(40), "again"], inputs[:41], KNOWN)
    assert alone is not None
    assert float(alone[40]) == pytest.approx(float(found[40]))


def test_too_little_says_nothing() -> None:
    assert novelty(texts(5), cloud(5, 3, 0), KNOWN) is None
    assert novelty(texts(30), cloud(30, 3, 0), {"a": cloud(6, 1, 0)}) is None
    assert novelty(texts(30), cloud(30, 3, 0), {}) is None


def test_wide_states_and_many_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    lift = torch.randn(DIMS, 1500, generator=generator)
    found = novelty(
        texts(2300), torch.cat([cloud(2200, 3, 0), cloud(100, 5, 2)]) @ lift, {t: x @ lift for t, x in KNOWN.items()}
    )
    assert found is not None
    assert (found[2200:] <= 0.03).float().mean() > 0.8
    assert (found[:2200] <= 0.03).float().mean() < 0.1
