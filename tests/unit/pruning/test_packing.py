"""Storage in few bits: the bounds that are promised, and that a packed adapter is its unpacked file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from stored_loras import LAYERS, write_factors, write_random_lora
from toys import stir, toy_settings

from adapterhub_cl.adapters import packed
from adapterhub_cl.adapters.lora import new_adapter, open_adapter, save_adapter, stored_adapter
from adapterhub_cl.adapters.lora_config import PACKED, weights_sha256
from adapterhub_cl.adapters.lora_files import LoraFile, is_packed, plain_folder, read_weights, unpack
from adapterhub_cl.adapters.stacking import put_beneath
from adapterhub_cl.errors import AdapterError, IntegrityError, UnknownNameError
from adapterhub_cl.merging.factors import Factors
from adapterhub_cl.pruning import storage

RANKS = {name: 3 + k for k, name in enumerate(LAYERS)}
RELATIVE = {"int8": 0.01, "int4": 0.12}


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


@given(
    kind=st.sampled_from(sorted(packed.LEVELS)),
    rows=st.integers(1, 5),
    n=st.integers(1, 200),
    seed=st.integers(0, 999),
    exponent=st.integers(-28, 25),
    spread=st.floats(0, 6),
)
def test_no_number_is_off_by_more_than_half_a_scale(
    kind: str, rows: int, n: int, seed: int, exponent: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    wild = torch.exp(spread * torch.randn(rows, n, generator=generator))  # outliers, as far as wanted
    matrix = torch.randn(rows, n, generator=generator) * wild * 10.0**exponent
    matrix = matrix.clamp(-1e30, 1e30)
    codes, scales = packed.quantise(matrix, kind)
    back = packed.dequantise(codes, scales, n)
    each = scales.float().repeat_interleave(packed.GROUP, 1)[:, :n]
    assert torch.all((back - matrix).abs() <= each * 0.5001)
    largest = matrix.abs().max()
    assert float((back.abs().max() - largest).abs()) <= 0.02 * float(largest)  # nothing is clipped
    assert codes.nbytes == rows * (n if kind == "int8" else -(-n // 2))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("scale", [1e-9, 1e-3, 50.0])
def test_the_error_of_numbers_like_noise(kind: str, scale: float) -> None:
    matrix = torch.randn(8, 1000, generator=torch.Generator().manual_seed(1)) * scale
    found = relative(matrix, packed.round_trip(matrix, kind))
    assert RELATIVE[kind] / 4 < found < RELATIVE[kind]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_zeros_stay_zeros(kind: str) -> None:
    assert torch.equal(packed.round_trip(torch.zeros(2, 70), kind), torch.zeros(2, 70))


@pytest.mark.parametrize("kind", storage.KINDS)
def test_a_stored_adapter_reads_as_it_was_predicted(kind: str, tmp_path: Path) -> None:
    folder = write_random_lora(tmp_path / "a", RANKS, rslora=True)
    before = read_weights(folder)
    storage.store(folder, kind)
    assert storage.stored_kind(folder) == kind
    assert is_packed(folder) is (kind in packed.LEVELS)
    after = read_weights(folder)
    assert after.keys() == before.keys()
    with LoraFile(folder) as adapter:
        assert adapter.modules == list(RANKS) or set(adapter.modules) == set(RANKS)
        for name in RANKS:
            key = f"base_model.model.{name}.lora_{{}}.weight"
            plain = Factors(before[key.format("B")], before[key.format("A")])
            told = storage.after_storage(plain, kind)
            assert torch.equal(after[key.format("B")].float(), told.b)
            assert torch.equal(after[key.format("A")].float(), told.a)
            b, a = adapter.factors(name)
            assert torch.equal(a, told.a)
            assert torch.allclose(b, told.b * adapter.scaling(name))
            assert adapter.shapes[name] == LAYERS[name]


def test_the_bytes_are_those_that_were_planned(tmp_path: Path) -> None:
    for kind in storage.KINDS:
        folder = write_random_lora(tmp_path / kind, RANKS)
        storage.store(folder, kind)
        planned = sum(storage.numbers_bytes(RANKS[name], LAYERS[name], kind) for name in RANKS)
        file = folder / (PACKED if kind in packed.LEVELS else "adapter_model.safetensors")
        held = sum(value.nbytes for value in load_file(file).values())
        assert held == planned
        assert storage.weights_bytes(folder) == file.stat().st_size


def test_a_number_too_large_for_fp16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="too large for fp16"):
        storage.after_storage(Factors(torch.full((4, 1), 1e6), torch.ones(1, 4)), "fp16")
    with pytest.raises(UnknownNameError, match="kind of storage"):
        storage.check_kind("int5")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_unpacked_and_packed_read_the_same_and_peft_gets_a_plain_copy(kind: str, tmp_path: Path) -> None:
    folder = write_random_lora(tmp_path / "a", RANKS)
    with plain_folder(folder) as same:
        assert same == folder
    storage.store(folder, kind)
    weights = read_weights(folder)
    with plain_folder(folder) as copy:
        assert copy != folder
        plain = read_weights(copy)
    assert not copy.exists()
    assert all(torch.equal(plain[key], weights[key]) for key in weights)


# -- on a base ---------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(pico_base: Any, tmp_path: Path) -> Path:
    with new_adapter(pico_base, toy_settings(rank=4), "CAUSAL_LM") as model:
        stir(model)
        save_adapter(model, tmp_path / "adapter", "pico")
    return tmp_path / "adapter"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 13)[None]).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["int8", "int4", "bf16"])
def test_a_packed_adapter_answers_as_its_unpacked_file_in_plain_peft(kind: str, adapter: Path, load_pico: Any) -> None:
    base = load_pico()
    with stored_adapter(base, adapter) as model:
        whole = logits(model)
    storage.store(adapter, kind)
    with stored_adapter(base, adapter) as model:
        ours = logits(model)
    outside = adapter.parent / "outside"
    outside.mkdir()
    if is_packed(adapter):
        unpack(adapter, outside)
    plain = PeftModel.from_pretrained(load_pico().model, str(outside if is_packed(adapter) else adapter))
    assert torch.equal(ours, logits(plain))
    assert not torch.equal(ours, whole)  # it was rounded
    assert relative(whole, ours) < {"int8": 0.02, "bf16": 0.02, "int4": 0.3}[kind]


def test_a_packed_adapter_can_be_gone_on_from_and_stood_on(adapter: Path, load_pico: Any) -> None:
    base = load_pico()
    storage.store(adapter, "int8")
    model = open_adapter(base.model, adapter, trainable=True)
    assert any(p.requires_grad for p in model.parameters())
    model.unload()
    with stored_adapter(base, adapter) as model:
        alone = logits(model)
    with new_adapter(base, toy_settings(rank=2), "CAUSAL_LM") as model:  # a fresh one changes nothing yet
        put_beneath(model, adapter)
        assert torch.allclose(logits(model), alone, atol=1e-5)


# -- files that are not as they should be ------------------------------------------------------------------------


def repack(folder: Path, change: Any) -> None:
    path = folder / PACKED
    tensors = load_file(path)
    file = packed.PackedFile(path)
    about = json.loads(file._file.metadata()[packed.ABOUT])
    del file
    change(tensors, about)
    save_file(tensors, path, metadata={packed.ABOUT: json.dumps(about)})


def drop(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    tensors.pop(next(iter(tensors)))


def shorten(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    key = next(key for key in tensors if key.endswith(".scales"))
    tensors[key] = tensors[key][:, :0].contiguous()


def newer(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    about["format"] = 2


def odd(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    about["shapes"] = []


def wider(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    about["shapes"] = {key: [rows, 10**9] for key, (rows, _) in about["shapes"].items()}


@pytest.mark.parametrize("change", [drop, shorten, newer, odd, wider])
def test_a_packed_file_that_does_not_fit_is_refused(change: Any, tmp_path: Path) -> None:
    folder = write_random_lora(tmp_path / "a", RANKS)
    storage.store(folder, "int4")
    repack(folder, change)
    for read in (read_weights, LoraFile):
        with pytest.raises(IntegrityError, match=r"packed\.safetensors cannot be read"):
            read(folder)


def test_a_truncated_packed_file_is_refused(tmp_path: Path) -> None:
    folder = write_random_lora(tmp_path / "a", RANKS)
    storage.store(folder, "int8")
    path = folder / PACKED
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match="cannot be read"):
        LoraFile(folder)


def test_infinite_scales_are_refused(tmp_path: Path) -> None:
    folder = write_random_lora(tmp_path / "a", RANKS)
    storage.store(folder, "int8")

    def spoil(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        for key in tensors:
            if key.endswith(".scales"):
                tensors[key] = torch.full_like(tensors[key], float("inf"))

    repack(folder, spoil)
    with pytest.raises(IntegrityError, match="NaN or infinity"):
        read_weights(folder)


def test_tensors_of_several_types_count_as_the_widest(tmp_path: Path) -> None:
    name = next(iter(LAYERS))
    out, in_ = LAYERS[name]
    mixed = {name: (torch.zeros(out, 1), torch.zeros(1, in_, dtype=torch.bfloat16))}
    assert storage.stored_kind(write_factors(tmp_path / "a", mixed)) == "fp32"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.packed.safetensors"])
def test_the_hash_of_the_weights_is_known_for_both_forms(name: str) -> None:
    record: Any = SimpleNamespace(manifest={"files": {name: {"sha256": "abc"}}})
    assert weights_sha256(record) == "abc"
