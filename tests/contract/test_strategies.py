"""What every strategy keeps to, also one that a third party brings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from toys import same, stir, toy_settings, toy_tokens, train

from adapterhub_cl.strategies import ROOM, BaseStrategy, Past
from adapterhub_cl.training import checkpoints
from adapterhub_cl.training.lora import new_adapter, save_adapter
from adapterhub_cl.types import AdapterRecord

NAMES = ROOM.names()
pytestmark = pytest.mark.parametrize("name", NAMES)


class Crash(Exception):
    """Stands for kill -9."""


@pytest.fixture(scope="module")
def bases(load_pico: Callable[..., Any]) -> dict[str, Any]:
    return {quantization: load_pico("llama", quantization) for quantization in ("none", "nf4")}


@pytest.fixture(scope="module")
def past(bases: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Two adapters that were learned before."""
    records = []
    for k, name in enumerate(("first", "second")):
        folder = tmp_path_factory.mktemp(name) / "v1"
        with new_adapter(bases["none"], toy_settings(), "CAUSAL_LM") as model:
            stir(model, seed=k)
            save_adapter(model, folder, "pico")
        records.append(AdapterRecord(name, 1, "trained", name, 2, 100, f"2026-01-0{k + 1}", "active", folder))
    return Past(tuple(records))


def run(name: str, base: Any, past: Past, **options: Any) -> Any:
    strategy: BaseStrategy = ROOM.get(name)()
    start = strategy.starts_from(past)
    settings = toy_settings(dropout=0.2, checkpoint_every=3, **options.pop("changes", {}))
    return train(base, settings, strategy=strategy, start=start.path if start else None, fuse=True, **options)


def test_it_is_documented_and_of_one_file(name: str) -> None:
    strategy = ROOM.get(name)
    module = inspect.getmodule(strategy)
    assert issubclass(strategy, BaseStrategy)
    assert module is not None
    assert module.__doc__, "what it does, the paper, when to choose it"
    assert "choose it" in module.__doc__.lower()
    assert strategy.__doc__
    assert strategy.shares, "a line for --help"
    assert "\n" not in strategy.shares
    assert len(inspect.getsource(module).splitlines()) <= 170


def test_it_starts_from_nothing_or_from_the_past(name: str, past: Past) -> None:
    assert ROOM.get(name)().starts_from(Past()) is None
    start = ROOM.get(name)().starts_from(past)
    assert start is None or start in past.latest


def test_the_same_seed_gives_the_same_adapter(name: str, bases: dict[str, Any], past: Past) -> None:
    one, two, other = (run(name, bases["none"], past, changes={"seed": seed}) for seed in (1, 1, 2))
    assert same(one.weights, two.weights)
    assert not same(one.weights, other.weights)


def test_it_learns_and_leaves_the_base_alone(name: str, bases: dict[str, Any], past: Past) -> None:
    base = bases["none"]
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    changes = {"epochs": 8, "dropout": 0.0, "rank": 8}
    outcome = train(base, toy_settings(**changes), toy_tokens(32), strategy=ROOM.get(name)(), fuse=True)
    assert outcome.history[-1]["loss"] < 0.7 * outcome.history[0]["loss"]
    assert same(base.model.state_dict(), before)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_interrupted_and_resumed_equals_uninterrupted(
    name: str, bases: dict[str, Any], past: Past, tmp_path: Path, quantization: str
) -> None:
    base = bases[quantization]
    whole = run(name, base, past)
    for step in (2, 4, 7):

        def crash(values: Mapping[str, float], at: int, step: int = step) -> None:
            if at == step and "loss" in values:
                raise Crash

        folder = tmp_path / str(step)
        folder.mkdir()
        with pytest.raises(Crash):
            run(name, base, past, run=folder, log=crash)
        assert same(run(name, base, past, run=folder).weights, whole.weights), f"killed at step {step}"


def test_its_state_goes_through_a_checkpoint(name: str, bases: dict[str, Any], past: Past, tmp_path: Path) -> None:
    strategy = ROOM.get(name)()
    train(bases["none"], toy_settings(), strategy=strategy)
    tensors, values = strategy.state()
    checkpoints.save(tmp_path, checkpoints.Checkpoint({f"strategy.{k}": v for k, v in tensors.items()}, {"s": values}))
    stored = checkpoints.load(tmp_path)
    assert stored is not None
    fresh = ROOM.get(name)()
    fresh.restore(stored.part("strategy"), stored.state["s"])
    again, again_values = fresh.state()
    assert same(again, tensors)
    assert again_values == values
