"""The measured choice: kept for the next run, and without any effect on what is learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import same, stir, toy_settings, toy_tokens

from adapterhub_cl.adapters import as_served
from adapterhub_cl.adapters.lora import new_adapter, trainable
from adapterhub_cl.objectives.causal_lm import Objective
from adapterhub_cl.training import speed
from adapterhub_cl.training.layer_stack import few_layers
from adapterhub_cl.training.speed import Speed


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "adapterhub-cl" / "speed.json"


@pytest.fixture
def model(pico_base: Any) -> Iterator[Any]:
    with new_adapter(pico_base, toy_settings(dropout=0.5), "CAUSAL_LM") as model:
        stir(model)
        model.train()
        yield model
    pico_base.model.set_attn_implementation("sdpa")


def choose(model: Any, base: Any) -> Speed:
    return speed.choose(model, base, Objective(), toy_tokens(9), 4)


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Pretends that a step takes that long; returns the list of what is asked for, by attention and padding."""
    asked: list[str] = []

    def measure(model: Any, objective: Any, batch: Any, way: Speed, base: Any) -> float:
        asked.append(way.attention if way.padding else f"{way.attention} without padding")
        assert (batch.unpadded is None) == way.padding
        return seconds[asked[-1]]

    monkeypatch.setattr(speed, "step_seconds", measure)
    return asked


@pytest.mark.parametrize(
    ("fast", "chosen"),
    [
        ({"eager": 0.5}, Speed("eager")),
        ({"eager": 0.97}, Speed("sdpa")),
        ({}, Speed("sdpa")),
        ({"sdpa": 0.5}, Speed("sdpa")),
        ({"eager": 0.8, "sdpa without padding": 0.6}, Speed("sdpa", padding=False)),
        ({"eager without padding": 0.6, "sdpa without padding": 0.7}, Speed("eager", padding=False)),
        ({"eager": 0.8, "eager without padding": 0.78}, Speed("eager")),
    ],
)
def test_the_default_stays_unless_clearly_beaten_and_the_choice_is_kept(
    model: Any, pico_base: Any, store: Path, monkeypatch: pytest.MonkeyPatch, fast: dict[str, float], chosen: Speed
) -> None:
    asked = timed(monkeypatch, {**dict.fromkeys(speed.WAYS, 1.0), **fast})
    assert choose(model, pico_base) == chosen
    assert set(asked) == set(speed.WAYS)
    count = len(asked)
    assert count <= 4 * (1 + speed.MOST_ROUNDS)
    assert choose(model, pico_base) == chosen
    assert len(asked) == count, "measured once"
    name = chosen.attention if chosen.padding else f"{chosen.attention} without padding"
    assert list(json.loads(store.read_text()).values()) == [name]


def test_one_slow_or_fast_step_does_not_decide() -> None:
    steps = {"sdpa": iter([1.0, 9.0, 1.0, 1.0, *[1.0] * 20]), "eager": iter([1.0, 0.2, *[1.0] * 20])}
    assert speed.fastest(lambda name: next(steps[name]), ["sdpa", "eager"], 5.0) == "sdpa"


def test_a_base_that_takes_long_for_a_step_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(clock)))
    asked: list[str] = []
    found = speed.fastest(lambda name: asked.append(name) or 1.0, ["sdpa", "eager"], 2.0)  # type: ignore[func-returns-value]
    assert (found, asked) == (None, ["eager", "sdpa", "eager"])


def test_few_layers_are_measured_and_all_are_there_again(model: Any) -> None:
    inner = model.get_base_model()
    layers = list(inner.model.layers)
    with few_layers(inner, speed.MEASURED):
        assert list(inner.model.layers) == layers[: speed.MEASURED]
    assert list(inner.model.layers) == layers
    with pytest.raises(ZeroDivisionError), few_layers(inner, speed.MEASURED):
        _ = 1 / 0
    assert list(inner.model.layers) == layers


def test_a_run_that_needs_padding_gets_it(
    model: Any, pico_base: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed(monkeypatch, {**dict.fromkeys(speed.WAYS, 1.0), "sdpa without padding": 0.1})
    assert speed.choose(model, pico_base, Objective(), toy_tokens(9), 4, padding=True) == Speed("sdpa")
    assert set(asked) == {"sdpa", "eager"}


def test_other_losses_rule_rows_without_padding_out(
    model: Any, pico_base: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl.answering import unpadded_attention

    asked = timed(monkeypatch, {**dict.fromkeys(speed.WAYS, 1.0), "sdpa without padding": 0.1})
    causal = unpadded_attention._causal
    monkeypatch.setattr(unpadded_attention, "_causal", lambda *given: torch.zeros_like(causal(*given)))
    assert choose(model, pico_base) == Speed("sdpa")
    assert set(asked) == {"sdpa", "eager"}


def test_naming_one_measures_nothing(model: Any, pico_base: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, {})
    found = speed.choose(model, pico_base, Objective(), toy_tokens(9), 4, attention="eager")
    assert (found, asked, store.exists()) == (Speed("eager", 0), [], False)


@pytest.mark.usefixtures("store")
def test_measuring_changes_nothing_that_is_learned_from(model: Any, pico_base: Any) -> None:
    """Else the first run on a machine, which measures, and the second would draw other dropout."""
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert choose(model, pico_base).attention in ("sdpa", "eager")
    assert torch.equal(torch.get_rng_state(), state)
    assert same({n: p.detach() for n, p in trainable(model).items()}, before)
    assert all(p.grad is None for p in model.parameters())
    assert model.training


@pytest.mark.usefixtures("store")
def test_each_way_computes_the_same(model: Any) -> None:
    model.eval()
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.no_grad():
        with speed.use(model, Speed("sdpa")):
            right = model(input_ids=ids).logits
        with speed.use(model, Speed("eager")):
            torch.testing.assert_close(model(input_ids=ids).logits, right, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("store")
def test_the_model_computes_as_before_however_a_run_ends(model: Any, pico_base: Any) -> None:
    before = speed.current(model)
    choose(model, pico_base)
    assert speed.current(model) == before
    with speed.use(model, Speed("eager")):
        assert speed.current(model) == "eager"
    with pytest.raises(ZeroDivisionError), speed.use(model, Speed("eager")):
        _ = 1 / 0
    assert speed.current(model) == before


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_spoilt_store_is_measured_anew(
    model: Any, pico_base: Any, store: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    store.parent.mkdir()
    store.write_text(content)
    timed(monkeypatch, {**dict.fromkeys(speed.WAYS, 1.0), "eager": 0.1})
    assert choose(model, pico_base).attention == "eager"


@pytest.mark.usefixtures("store")
def test_an_architecture_with_one_kind_of_attention(load_pico: Callable[..., Any]) -> None:
    base = load_pico("bloom")
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        chosen = choose(model, base)
        assert chosen.attention == "eager"
        with speed.use(model, chosen):
            assert speed.current(model) == "eager"


def test_weights_are_kept_only_where_they_exist_and_fit(
    load_pico: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_pico("llama", "nf4")
    assert as_served.spare_bytes(load_pico("llama", "none")) == 0
    assert as_served.spare_bytes(base) == base.info.parameters * 4
    low = type("Memory", (), {"available": base.info.parameters * 15})()
    monkeypatch.setattr(as_served.psutil, "virtual_memory", lambda: low)
    assert as_served.spare_bytes(base) == 0


def test_it_is_told() -> None:
    assert Speed().describe() == "sdpa attention"
    assert Speed("eager", padding=False).describe() == "eager attention, no padding"
    assert "12 MB" in Speed("eager", 12_000_000).describe()
    assert speed.to_json(Speed("eager", 5)).items() >= {"attention": "eager", "keep_bytes": 5, "padding": True}.items()
    assert Speed(every=1, rows=4).describe() == "sdpa attention, every layer computed twice, 4 rows at a time"


UNKNOWN = ('{"attention": "x", "keep_bytes": 1}', '{"attention": "sdpa", "keep_bytes": 1, "dtype": "x"}')


@pytest.mark.parametrize("text", ["", "[]", "{}", *UNKNOWN, "\ud800"])
def test_a_damaged_choice_is_measured_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "speed.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert speed.stored(tmp_path) is None
    for chosen in (Speed("eager", 7), Speed("sdpa", 0, padding=False, dtype="bf16")):
        speed.store(tmp_path, chosen)
        assert speed.stored(tmp_path) == chosen
    (tmp_path / "speed.json").write_text('{"attention": "sdpa", "keep_bytes": 3}')  # as version 0.2.0 wrote it
    assert speed.stored(tmp_path) == Speed("sdpa", 3)
