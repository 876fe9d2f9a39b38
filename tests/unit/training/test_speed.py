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
    asked: list[str] = []

    def measure(model: Any, objective: Any, batch: Any, name: str, dtype: torch.dtype) -> float:
        asked.append(name)
        return seconds[name]

    monkeypatch.setattr(speed, "_step_seconds", measure)
    return asked


@pytest.mark.parametrize(("eager", "chosen"), [(0.5, "eager"), (0.95, "sdpa"), (1.0, "sdpa"), (2.0, "sdpa")])
def test_the_default_stays_unless_clearly_beaten_and_the_choice_is_kept(
    model: Any, pico_base: Any, store: Path, monkeypatch: pytest.MonkeyPatch, eager: float, chosen: str
) -> None:
    asked = timed(monkeypatch, {"sdpa": 1.0, "eager": eager})
    assert choose(model, pico_base) == Speed(chosen, 0)
    assert asked[:2] == ["sdpa", "eager"]
    count = len(asked)
    assert count <= 2 + 2 * speed.MOST_PAIRS
    assert choose(model, pico_base) == Speed(chosen, 0)
    assert len(asked) == count, "measured once"
    assert list(json.loads(store.read_text()).values()) == [chosen]


def test_one_slow_or_fast_step_does_not_decide() -> None:
    steps = {"sdpa": iter([1.0, 1.0, 9.0, 1.0, 1.0, *[1.0] * 20]), "eager": iter([1.0, 0.2, *[1.0] * 20])}
    assert speed._faster(lambda name: next(steps[name])) == "sdpa"


def test_a_base_that_takes_long_for_a_step_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(clock)))
    asked: list[str] = []
    assert speed._faster(lambda name: asked.append(name) or 1.0) == "sdpa"  # type: ignore[func-returns-value]
    assert asked == ["sdpa"]


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
        assert speed.current(model) == Speed("eager")
    with pytest.raises(ZeroDivisionError), speed.use(model, Speed("eager")):
        _ = 1 / 0
    assert speed.current(model) == before


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_spoilt_store_is_measured_anew(
    model: Any, pico_base: Any, store: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    store.parent.mkdir()
    store.write_text(content)
    timed(monkeypatch, {"sdpa": 1.0, "eager": 0.1})
    assert choose(model, pico_base).attention == "eager"


@pytest.mark.usefixtures("store")
def test_an_architecture_with_one_kind_of_attention(load_pico: Callable[..., Any]) -> None:
    base = load_pico("bloom")
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        chosen = choose(model, base)
        assert chosen.attention == "eager"
        with speed.use(model, chosen):
            assert speed.current(model).attention == "eager"


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
    assert "12 MB" in Speed("eager", 12_000_000).describe()
    assert speed.to_json(Speed("eager", 5)) == {"attention": "eager", "keep_bytes": 5}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"attention": "x", "keep_bytes": 1}', "\ud800"])
def test_a_damaged_choice_is_measured_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "speed.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert speed.stored(tmp_path) is None
    speed.store(tmp_path, Speed("eager", 7))
    assert speed.stored(tmp_path) == Speed("eager", 7)
