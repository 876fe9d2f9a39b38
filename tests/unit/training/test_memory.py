"""What a run needs is told before it starts, and what does not fit computes with less, to the same result."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import stir, toy_settings, toy_tokens

from adapterhub_cl import AdapterHub, TrainingSettings
from adapterhub_cl.adapters.lora import new_adapter, trainable
from adapterhub_cl.bases import loading
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import UsageError, is_out_of_memory
from adapterhub_cl.objectives.causal_lm import Objective
from adapterhub_cl.training import memory, speed
from adapterhub_cl.training.layer_stack import few_layers, recomputed, stack_of
from adapterhub_cl.training.memory import Needs
from adapterhub_cl.training.speed import Speed


@pytest.fixture(autouse=True)
def _freed_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured here is memory: freed memory goes back to the system, as it does for users."""
    monkeypatch.setattr(memory, "trim", loading.trim)


NEEDS = Needs(resident=1000, states=100, layer=100, entry=10, rest=50, layers=12, batch=16)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"),
        RuntimeError("CUDA driver error: out of memory"),
    ],
)
def test_every_form_of_no_memory_is_known(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("out of memory"), KeyError("memory"), RuntimeError("")]
)
def test_other_errors_are_no_lack_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("10GB", 10**10), ("10g", 10**10), ("8GiB", 8 * 2**30), ("512 MB", 512 * 10**6), ("1.5GB", 15 * 10**8),
     ("2000000", 2_000_000), ("1kb", 1000)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert TrainingSettings(memory=text).memory_bytes() == size


@pytest.mark.parametrize("text", ["much", "0", "0GB", "-1GB", "10XB", "GB", "1e9", " ", "1" * 40, "٣GB"])
def test_odd_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--memory must be a size such as 10GB"):
        TrainingSettings(memory=text)


@pytest.mark.parametrize("text", ["", "0", "-1", "on", "1.5", "9999", "²"])
def test_odd_checkpointing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--checkpointing must be auto, off or a number"):
        TrainingSettings(checkpointing=text)


@given(st.integers(1, 16), st.sampled_from([0, 1, 2, 3]))
def test_fewer_rows_and_more_recomputing_never_need_more(rows: int, every: int) -> None:
    assert NEEDS.peak(rows, every) <= NEEDS.peak(16, every)
    assert NEEDS.peak(16, 1) <= NEEDS.peak(16, 2) <= NEEDS.peak(16, 3) <= NEEDS.peak(16, 0)
    assert NEEDS.peak(rows, every) > NEEDS.resident


@pytest.mark.parametrize(
    ("room", "settings", "every", "rows"),
    [
        (10_000, {}, 0, 0),
        (2_400, {}, 3, 0),
        (2_200, {}, 2, 0),
        (1_700, {}, 1, 0),
        (1_400, {}, 1, 8),
        (1_400, {"checkpointing": "off"}, 0, 2),
        (10_000, {"checkpointing": "2"}, 2, 0),
    ],
)
def test_less_memory_is_met_by_recomputing_first_and_then_by_fewer_rows(
    pico_base: Any, monkeypatch: pytest.MonkeyPatch, room: int, settings: dict[str, str], every: int, rows: int
) -> None:
    monkeypatch.setattr(memory, "needs", lambda *given: NEEDS)
    asked = TrainingSettings(memory=str(room), **settings)  # type: ignore[arg-type]
    way, peak = memory.fitted(None, pico_base, Objective(), [], asked, Speed("eager"))
    assert (way.every, way.rows) == (every, rows)
    assert peak == NEEDS.peak(rows or 16, every) <= room


def test_a_limit_below_the_base_is_refused(pico_base: Any) -> None:
    with new_adapter(pico_base, toy_settings(), "CAUSAL_LM") as model:
        given = (model, pico_base, Objective(), toy_tokens(9))
        with pytest.raises(UsageError, match="--memory 1MB is too small: one row at a time needs") as caught:
            memory.fitted(*given, TrainingSettings(memory="1MB"), Speed())
        assert caught.value.hint.startswith("--memory ")
        way, peak = memory.fitted(*given, TrainingSettings(), Speed())
    assert (way.every, way.rows) == (0, 0)
    assert peak > 1e8  # at least the libraries


def test_measuring_leaves_no_trace(pico_base: Any) -> None:
    with new_adapter(pico_base, toy_settings(dropout=0.5), "CAUSAL_LM") as model:
        layers = list(pico_base.model.model.layers)
        state = torch.get_rng_state()
        memory.fitted(model, pico_base, Objective(), toy_tokens(9), TrainingSettings(), Speed())
        assert list(pico_base.model.model.layers) == layers
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is None for p in model.parameters())


def test_the_measurement_leaves_no_activations_behind(pico_base: Any) -> None:
    """A graph whose hooks hold it would stay for as long as the process lives, one more after each training."""

    def activations() -> int:
        gc.collect()
        return sum(type(one) is torch.Tensor and one.grad_fn is not None for one in gc.get_objects())

    with new_adapter(pico_base, toy_settings(), "CAUSAL_LM") as model:
        before = activations()
        memory.fitted(model, pico_base, Objective(), toy_tokens(9), TrainingSettings(), Speed())
        assert activations() == before


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "bloom"])
@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_those_of_kept_layers(load_pico: Callable[..., Any], kind: str, every: int) -> None:
    base = load_pico(kind)
    tokens = toy_tokens(6)
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        stir(model)
        parameters = list(trainable(model).values())
        inner = model.get_base_model()
        found = stack_of(inner)
        assert found is not None
        for way in (Speed(), Speed(padding=kind == "bloom")):
            batch = collate(tokens, range(6), 0, padding=way.padding)
            gradients = []
            for often in (0, every):
                with speed.use(model, way) if kind != "bloom" else few_layers(inner, 99), recomputed(inner, often):
                    gradients.append(torch.autograd.grad(Objective().losses(model, batch).sum(), parameters))
            for mine, plain in zip(*gradients, strict=True):
                assert (mine - plain).norm() <= 1e-5 * plain.norm() + 1e-9
        assert all("forward" not in layer.__dict__ for layer in found[2])


def test_a_base_without_layers_cannot_recompute_them(pico_base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "stack_of", lambda model: None)
    monkeypatch.setattr("adapterhub_cl.training.layer_stack.stack_of", lambda model: None)
    with new_adapter(pico_base, toy_settings(), "CAUSAL_LM") as model:
        given = (model, pico_base, Objective(), toy_tokens(9))
        with pytest.raises(UsageError, match="--checkpointing 2: no layers were found in this base"):
            memory.fitted(*given, TrainingSettings(checkpointing="2"), Speed())
        assert memory.fitted(*given, TrainingSettings(), Speed())[0].every == 0


def test_a_number_above_the_bases_layers_is_refused(pico_base: Any) -> None:
    with new_adapter(pico_base, toy_settings(), "CAUSAL_LM") as model:
        given = (model, pico_base, Objective(), toy_tokens(9))
        with pytest.raises(UsageError, match="--checkpointing 3 is more than the 2 layers of this base"):
            memory.fitted(*given, TrainingSettings(checkpointing="3"), Speed())


def test_what_measuring_leaves_with_the_allocator_is_not_resident(tmp_path: Path) -> None:
    """Long rows on `tiny`: the passes that are measured take as much as the base and the libraries."""
    base = AdapterHub.init(tmp_path / "hub", base="tiny", quantization="none", dtype="fp32").load_base()
    rows = [Tokens(tuple(range(10, 450)), (5, 6)) for _ in range(16)]
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        memory.give_back(base.device)
        before = psutil.Process().memory_info().rss
        found = memory.needs(model, base, Objective(), rows, 16, Speed())
    assert found.peak(16, 0) - found.resident > 4e8
    assert found.resident < 1.15 * before
