"""Loading: frozen, quantised near the original, and only the base that the hub was made for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub_cl.bases import QUANTIZATIONS
from adapterhub_cl.bases.loading import choose_device, inspect_base, load_base
from adapterhub_cl.errors import BaseModelError, UsageError
from adapterhub_cl.types import BaseInfo

IDS = torch.randint(3, 300, (4, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def chances(base: Any) -> torch.Tensor:
    return base.model(input_ids=IDS).logits.float().softmax(-1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_quantised_bases_answer_nearly_as_the_original(
    load_pico: Callable[..., Any], pico_base: Any, quantization: str, dtype: str
) -> None:
    base = load_pico("llama", quantization, dtype=dtype)
    right, ours = chances(pico_base), chances(base)
    # Distance of distributions: 0 is equal, 1 is disjoint. Random wide weights are the hard case for 4 bits.
    limit = {"none": 0.03, "int8": 0.06, "nf4": 0.35, "fp4": 0.4}[quantization]
    far = float((ours - right.roll(1, 0)).abs().sum(-1).mean() / 2)
    near = float((ours - right).abs().sum(-1).mean() / 2)
    assert near < limit
    assert near < far * 0.7, "nearer to the original's answer to this input than to another's"
    assert base.info.quantization == quantization
    if quantization != "none":
        kind = {"int8": "Linear8bitLt"}.get(quantization, "Linear4bit")
        assert type(base.model.model.layers[0].mlp.up_proj).__name__ == kind
        assert type(base.model.lm_head) is torch.nn.Linear
    if quantization == "none" and dtype == "fp32":
        assert near == 0


def test_a_base_is_frozen_and_told_about(pico_base: Any) -> None:
    assert not any(p.requires_grad for p in pico_base.model.parameters())
    assert not pico_base.model.training
    assert pico_base.dtype == torch.float32
    assert pico_base.context == 256
    assert pico_base.info.architecture == "LlamaForCausalLM"


def test_a_tokenizer_without_a_padding_token_gets_one(pico_copy: Callable[..., Path]) -> None:
    folder = pico_copy()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    base = load_base(BaseInfo(str(folder), "", "none"), device="cpu", dtype="fp32")
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id == 2
    assert base.info.parameters == sum(p.numel() for p in base.model.parameters())


def test_a_changed_base_is_refused(pico_copy: Callable[..., Path]) -> None:
    folder = pico_copy()
    info = inspect_base(str(folder), "none")
    load_base(info, device="cpu", dtype="fp32")
    (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + "\n")
    with pytest.raises(BaseModelError, match="has changed since this hub was made") as caught:
        load_base(info, device="cpu", dtype="fp32")
    assert info.fingerprint[:12] in caught.value.message
    assert "cl-adapter init" in caught.value.hint
    load_base(replace(info, fingerprint=""), device="cpu", dtype="fp32")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"{}"])
def test_spoilt_files_are_one_line(pico_copy: Callable[..., Path], name: str, content: bytes) -> None:
    folder = pico_copy()
    (folder / name).write_bytes(content)
    with pytest.raises(BaseModelError) as caught:
        load_base(BaseInfo(str(folder), "", "none"), device="cpu", dtype="fp32")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_config_that_asks_for_more_than_the_weights_hold_is_refused(
    pico_copy: Callable[..., Path], kind: str, quantization: str
) -> None:
    folder = pico_copy(kind)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=r"weights that its config.json requires are missing.*layers?\.") as caught:
        load_base(inspect_base(str(folder), quantization), device="cpu", dtype="fp32")
    assert "download the base again" in caught.value.hint


def test_a_vocabulary_of_another_size_is_refused(pico_copy: Callable[..., Path]) -> None:
    folder = pico_copy("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    with pytest.raises(BaseModelError, match=r"1 weights .* another shape, such as bert\.embeddings"):
        load_base(inspect_base(str(folder), "none"), device="cpu", dtype="fp32")


def test_a_config_without_architectures_is_told(pico_copy: Callable[..., Path]) -> None:
    folder = pico_copy()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"}))
    with pytest.raises(BaseModelError, match="names no architectures"):
        inspect_base(str(folder), "none")


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_each_process_of_a_launcher_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device(asked) == torch.device("cuda")
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert choose_device(asked) == torch.device("cuda", rank)
    assert choose_device("cuda:0") == torch.device("cuda:0"), "what is asked for is what is taken"
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="process 2 has no GPU of its own: this machine has 2") as caught:
        choose_device(asked)
    assert caught.value.hint == "accelerate launch --num_processes 2"


def test_a_launcher_without_gpus_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cpu")


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="unknown device 'gpu7'"):
        choose_device("gpu7")
    if not torch.cuda.is_available():
        assert choose_device() == torch.device("cpu")
        with pytest.raises(UsageError, match="no usable GPU"):
            choose_device("cuda:0")
