"""What osf keeps the adapter out of, and when forever reviews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import toy_settings, toy_tokens, train

from adapterhub_cl.adapters.lora import save_adapter
from adapterhub_cl.strategies import Origin
from adapterhub_cl.strategies.forever import Config as ForeverConfig
from adapterhub_cl.strategies.forever import Strategy as Forever
from adapterhub_cl.strategies.forever import due_after
from adapterhub_cl.strategies.osf import Config as OsfConfig
from adapterhub_cl.strategies.osf import Strategy as Osf
from adapterhub_cl.strategies.osf import joined, top_directions
from adapterhub_cl.types import Example


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_top_directions_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, v = top_directions(weight, 0.5)
    left, _, right = torch.linalg.svd(weight)
    assert (u.shape, v.shape) == ((shape[0], 3), (shape[1], 3))
    assert torch.allclose(u @ u.T, left[:, :3] @ left[:, :3].T, atol=1e-4)
    assert torch.allclose(v @ v.T, right[:3].T @ right[:3], atol=1e-4)
    assert [part.shape[1] for part in top_directions(weight, 0.0)] == [0, 0]


def test_bases_are_joined_without_repeating() -> None:
    basis = torch.eye(5)[:, :2]
    wider = joined(basis, torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert wider.shape == (5, 3)
    assert torch.allclose(wider.T @ wider, torch.eye(3), atol=1e-6)


def test_the_new_adapter_stays_out_of_what_is_beneath(pico_base: Any, tmp_path: Path) -> None:
    place = tmp_path / "v1"
    place.mkdir()
    train(pico_base, toy_settings(), after=lambda model, _: save_adapter(model, place, "pico"))
    found: dict[str, float] = {}

    def overlap(model: Any, loop: Any) -> None:
        for name, module in model.named_modules():
            if hasattr(module, "lora_A") and "beneath" in module.lora_A:
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                u, v = top_directions(module.get_base_layer().weight.detach(), 0.5)
                inner = [a @ v, b.T @ u, a @ module.lora_A["beneath"].weight.T, b.T @ module.lora_B["beneath"].weight]
                found[name] = max(float(part.detach().abs().max()) for part in inner)
                assert float(b.detach().abs().max()) > 1e-3, "it learned something"

    train(pico_base, toy_settings(), strategy=Osf(OsfConfig(0.5)), beneath=place, after=overlap)
    assert found
    assert max(found.values()) < 1e-4


def test_reviews_are_due_at_growing_intervals() -> None:
    assert [due_after(k) for k in range(8)] == [1, 2, 4, 7, 15, 30, 60, 120]


def test_a_review_goes_once_over_all_samples_and_is_timed_by_what_changed(pico_base: Any) -> None:
    past = toy_tokens(6, seed=5)
    origins = [Origin("old", None, Example(f"old {k}")) for k in range(len(past))]
    runs = {}
    for rate in (0.01, 0.03):
        strategy = Forever(ForeverConfig(day=2, ratio=0.5))
        settings = toy_settings(epochs=6, learning_rate=rate, schedule="constant", warmup=0.0)
        train(pico_base, settings, toy_tokens(16), strategy=strategy, past=past, origins=origins)
        runs[rate] = strategy
    for strategy in runs.values():
        reviews = strategy.reviews
        assert len(reviews) >= 3
        assert [row["rows"] for row in reviews] == [6] * len(reviews)
        assert all(row["days"] >= due_after(k) for k, row in enumerate(reviews))
        assert reviews[0]["step"] == 2, "the first day is over after two steps"
        assert strategy.summary() == {"reviews": reviews}
    assert runs[0.03].moved > 1.5 * runs[0.01].moved
