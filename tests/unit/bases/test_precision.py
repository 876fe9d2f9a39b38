"""The type of the products is measured, kept by machine, and told with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adapterhub_cl.bases import precision
from adapterhub_cl.bases.precision import choose_dtype, times_as_fast
from adapterhub_cl.errors import UnknownNameError

CPU = torch.device("cpu")
CONFIG = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "adapterhub-cl" / "speed.json"


def timed(monkeypatch: pytest.MonkeyPatch, bf16: float, fp32: float) -> list[torch.dtype]:
    asked: list[torch.dtype] = []

    def seconds(shapes: object, dtype: torch.dtype, device: torch.device) -> float:
        asked.append(dtype)
        return {torch.bfloat16: bf16, torch.float32: fp32}[dtype]

    monkeypatch.setattr(precision, "_seconds", seconds)
    return asked


@pytest.mark.parametrize(
    ("bf16", "fp32", "chosen", "why"),
    [
        (1.0, 5.0, torch.bfloat16, "bf16, measured here to be 5.0 times as fast as fp32"),
        (2.0, 1.0, torch.float32, "fp32, measured here to be 2.0 times as fast as bf16"),
        (1.1, 1.0, torch.bfloat16, "bf16, measured here to be 0.9 times as fast as fp32"),  # for half the memory
    ],
)
def test_what_is_faster_here_is_taken_and_kept(
    store: Path, monkeypatch: pytest.MonkeyPatch, bf16: float, fp32: float, chosen: torch.dtype, why: str
) -> None:
    asked = timed(monkeypatch, bf16, fp32)
    assert choose_dtype("auto", CPU, CONFIG) == (chosen, why)
    count = len(asked)
    assert choose_dtype("auto", CPU, CONFIG) == (chosen, why)
    assert len(asked) == count, "measured once"
    choose_dtype("auto", CPU, {"hidden_size": 96})
    assert len(asked) > count, "another base has other products"


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_spoilt_store_is_measured_anew(store: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    store.parent.mkdir()
    store.write_text(content)
    timed(monkeypatch, 1.0, 3.0)
    assert choose_dtype("auto", CPU, CONFIG)[0] == torch.bfloat16
    for impossible in ("many", "nan", "-3", "0", "inf"):
        store.write_text(json.dumps(dict.fromkeys(json.loads(store.read_text()), impossible)))
        assert choose_dtype("auto", CPU, CONFIG) == (
            torch.bfloat16,
            "bf16, measured here to be 3.0 times as fast as fp32",
        )


@pytest.mark.usefixtures("store")
def test_memory_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 3.0, 1.0)
    monkeypatch.setattr(precision.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 8e9})())
    assert choose_dtype("auto", CPU, CONFIG, 900_000_000)[0] == torch.float32
    chosen, why = choose_dtype("auto", CPU, CONFIG, 1_100_000_000)
    assert chosen == torch.bfloat16
    assert "would not fit into memory" in why


def test_one_slow_moment_does_not_decide() -> None:
    times = {"a": iter([1.0, *[1.0] * 99]), "b": iter([1.0, 0.01, 50.0, *[2.0] * 99])}
    assert times_as_fast(lambda name: next(times[name]), "a", "b") == 2.0


@pytest.mark.parametrize(
    "config",
    [{}, {"hidden_size": None, "n_embd": 48}, {"text_config": {"hidden_size": 48}}, {"hidden_size": "x"}, {"d_ff": -1},
     {"hidden_size": 10**12}],
)  # fmt: skip
def test_odd_configs_are_measured_too(store: Path, config: dict[str, object]) -> None:
    chosen, why = choose_dtype("auto", CPU, config)
    assert chosen in (torch.bfloat16, torch.float32)
    assert "measured here" in why
    assert store.exists()


def test_a_named_type_is_taken() -> None:
    assert choose_dtype("fp16", CPU) == (torch.float16, "")
    with pytest.raises(UnknownNameError, match="dtype 'bf17'") as caught:
        choose_dtype("bf17", CPU)
    assert "did you mean bf16" in caught.value.hint
