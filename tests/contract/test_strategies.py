"""What every strategy keeps to, also one that a third party brings."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from toys import same, toy_settings, toy_tokens, train

from adapterhub_cl.adapters.lora import save_adapter
from adapterhub_cl.bank.shelf import read_adapter
from adapterhub_cl.errors import UsageError
from adapterhub_cl.strategies import MEMORY, ROOM, BaseStrategy, Kin, Origin, build
from adapterhub_cl.training import checkpoints
from adapterhub_cl.types import Example

NAMES = ROOM.names()
pytestmark = pytest.mark.parametrize("name", NAMES)
OLD = [Example(f"old {k}", f"answer {k}") for k in range(6)]


# What makes a method slow, and does nothing for what is tested here.
BRIEF: Mapping[str, Mapping[str, str]] = {"sdft": {"sdft.longest": "4"}, "reptile": {"reptile.rounds": "5"}}


def built(name: str) -> Any:
    return build(name, BRIEF.get(name, {}))


class Crash(Exception):
    """Stands for kill -9."""


@pytest.fixture(scope="module")
def bases(load_pico: Callable[..., Any]) -> dict[str, Any]:
    return {quantization: load_pico("llama", quantization) for quantization in ("none", "nf4")}


@pytest.fixture(scope="module")
def first(bases: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a first task's version, learned with the strategy: adapter, and what it remembers."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            place = tmp_path_factory.mktemp(f"first-{name}") / "v1"
            place.mkdir()
            strategy = built(name)

            def keep(model: Any, loop: Any) -> None:
                save_adapter(model, place, "pico")
                stored = strategy.remember(loop.stage, OLD, toy_tokens(len(OLD), seed=5))
                if stored:
                    tensors = {key: value.detach().contiguous().clone() for key, value in stored.items()}
                    save_file(tensors, place / MEMORY)

            train(bases["none"], toy_settings(), toy_tokens(seed=5), strategy=strategy, fuse=True, after=keep)
            made[name] = place
        return made[name]

    return folder


def second(name: str, base: Any, first: Callable[[str], Path], **options: Any) -> Any:
    """Learns a second task on top of the first."""
    place = first(name)
    strategy = options.pop("strategy", None) or built(name)
    settings = toy_settings(dropout=0.2, checkpoint_every=3, **options.pop("changes", {}))
    at: dict[str, Any] = {"continued": {"start": place}, "stacked": {"beneath": place}}.get(strategy.makes, {})
    past = toy_tokens(len(OLD), seed=5) if strategy.what_is_read else []
    origins = [Origin("old", place, example) for example in OLD] if past else []
    tries = built(name).trial is not None
    kin = [Kin({"old@v1": 1.0}, 0.0, read_adapter(place, torch.float32).factors)] if tries else []
    at |= {"past": past, "origins": origins, "kin": kin}
    return train(base, settings, toy_tokens(40 if tries else 14), strategy=strategy, fuse=True, **at, **options)


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
    assert strategy.form in ("", "fresh", "continued", "stacked")
    assert strategy.reads in ("", "samples", "data")
    assert len(inspect.getsource(module).splitlines()) <= 190


def test_its_options_are_known_without_torch(name: str) -> None:
    code = f"""
import sys
from adapterhub_cl.strategies import build
build({name!r})
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr == ""


def test_its_options_have_help_and_refuse_what_cannot_be_used(name: str) -> None:
    config = ROOM.get(name).Config
    assert is_dataclass(config)
    for option in fields(config):
        assert option.metadata["help"], option.name
        with pytest.raises(UsageError) as refused:
            build(name, {f"{name}.{option.name}": "nonsense"})
        assert option.name in refused.value.message
        if option.type in ("int", "float"):
            with pytest.raises(UsageError, match=option.name):
                build(name, {f"{name}.{option.name}": "-7"})
    with pytest.raises(UsageError, match="unknown"):
        build(name, {f"{name}.no_such_option": "1"})


def test_the_same_seed_gives_the_same_adapter(name: str, bases: dict[str, Any], first: Callable[[str], Path]) -> None:
    one, two, other = (second(name, bases["none"], first, changes={"seed": seed}) for seed in (1, 1, 2))
    assert same(one.weights, two.weights)
    assert not same(one.weights, other.weights)


def test_it_learns_and_leaves_the_base_alone(name: str, bases: dict[str, Any]) -> None:
    base = bases["none"]
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    changes = {"epochs": 8, "dropout": 0.0, "rank": 8}
    outcome = train(base, toy_settings(**changes), toy_tokens(32), strategy=built(name), fuse=True)
    assert outcome.history[-1]["loss"] < 0.75 * outcome.history[0]["loss"]
    assert same(base.model.state_dict(), before)


def test_it_does_something_about_the_past_where_it_says_so(
    name: str, bases: dict[str, Any], first: Callable[[str], Path]
) -> None:
    """Its second task ends elsewhere than that of a strategy of its form whose hooks do nothing."""

    class Nothing(BaseStrategy):
        makes, what_is_read = built(name).makes, ""

    nothing = second(name, bases["none"], first, strategy=Nothing())
    assert same(second(name, bases["none"], first).weights, nothing.weights) is not ROOM.get(name).acts_on_past


@pytest.mark.parametrize(
    ("quantization", "killed_at"),
    [
        ("none", (2, 7)),
        pytest.param("none", (4,), marks=pytest.mark.slow),
        pytest.param("nf4", (2, 4, 7), marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    name: str,
    bases: dict[str, Any],
    first: Callable[[str], Path],
    tmp_path: Path,
    quantization: str,
    killed_at: Sequence[int],
) -> None:
    base = bases[quantization]

    def remembered(into: dict[str, torch.Tensor], strategy: Any) -> Callable[[Any, Any], None]:
        def keep(model: Any, loop: Any) -> None:
            into.update(strategy.remember(loop.stage, OLD, toy_tokens(len(OLD), seed=5)))

        return keep

    whole_memory: dict[str, torch.Tensor] = {}
    strategy = built(name)
    whole = second(name, base, first, strategy=strategy, after=remembered(whole_memory, strategy))
    summary = json.dumps(strategy.summary())
    for step in killed_at:

        def crash(values: Mapping[str, float], at: int, step: int = step) -> None:
            if at == step and "loss" in values:
                raise Crash

        folder = tmp_path / str(step)
        folder.mkdir()
        with pytest.raises(Crash):
            second(name, base, first, run=folder, log=crash)
        again: dict[str, torch.Tensor] = {}
        strategy = built(name)
        outcome = second(name, base, first, run=folder, strategy=strategy, after=remembered(again, strategy))
        assert same(outcome.weights, whole.weights), f"killed at step {step}"
        assert same(again, whole_memory), f"killed at step {step}: what it remembers"
        assert json.dumps(strategy.summary()) == summary


def test_its_state_goes_through_a_checkpoint(
    name: str, bases: dict[str, Any], first: Callable[[str], Path], tmp_path: Path
) -> None:
    strategy = built(name)
    second(name, bases["none"], first, strategy=strategy)
    tensors, values = strategy.state()
    checkpoints.save(tmp_path, checkpoints.Checkpoint({f"strategy.{k}": v for k, v in tensors.items()}, {"s": values}))
    stored = checkpoints.load(tmp_path)
    assert stored is not None
    fresh = built(name)
    fresh.restore(stored.part("strategy"), stored.state["s"])
    again, again_values = fresh.state()
    assert same(again, tensors)
    assert again_values == values
