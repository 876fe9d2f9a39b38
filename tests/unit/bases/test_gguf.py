"""A GGUF file as a base: unpacked once, known by its own hash, the same as the folder that transformers makes of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases import gguf_files
from adapterhub_cl.bases.loading import inspect_base, load_base
from adapterhub_cl.bases.sources import resolve
from adapterhub_cl.errors import BaseModelError

gguf = pytest.importorskip("gguf")
WIDTH, LAYERS, HEADS, INNER = 32, 2, 2, 64
BLOCKS = b"llama.block_count" + bytes([gguf.GGUFValueType.UINT32, 0, 0, 0])  # what stands before their number


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _torch: Any) -> Path:
    """A Llama of two layers with random weights, as llama.cpp's converter writes one."""
    from pico import make_tokenizer

    path = tmp_path_factory.mktemp("gguf") / "pico.F32.gguf"
    tokenizer = make_tokenizer()
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(inner["vocab"], key=inner["vocab"].get)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<pad>", "<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in inner["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    generator = torch.Generator().manual_seed(5)

    def tensor(name: str, *shape: int) -> None:
        value = torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) * 0.15
        writer.add_tensor(f"{name}.weight", value.numpy())

    tensor("token_embd", len(tokens), WIDTH)
    tensor("output", len(tokens), WIDTH)
    tensor("output_norm", WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{name}", WIDTH, WIDTH)
        tensor(f"blk.{layer}.ffn_gate", INNER, WIDTH)
        tensor(f"blk.{layer}.ffn_up", INNER, WIDTH)
        tensor(f"blk.{layer}.ffn_down", WIDTH, INNER)
        tensor(f"blk.{layer}.attn_norm", WIDTH)
        tensor(f"blk.{layer}.ffn_norm", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the file, and a cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copy(made, tmp_path / "pico.F32.gguf"))


def test_it_answers_as_the_folder_that_transformers_makes(file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    info = inspect_base(str(file), "none")
    assert info.source == str(file)
    assert info.fingerprint == hashlib.sha256(file.read_bytes()).hexdigest()
    base = load_base(info, device="cpu", dtype="fp32")
    plain = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    ).float()
    ids = torch.tensor([[1, 50, 60, 70]])
    with torch.no_grad():
        torch.testing.assert_close(base.model(ids).logits, plain(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert base.tokenizer("a lamp in the hall").input_ids == tokenizer("a lamp in the hall").input_ids
    assert base.tokenizer.chat_template == tokenizer.chat_template


def test_the_whole_path_and_the_file_is_read_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"thing {k}", "label": "ab"[k % 2]}) + "\n" for k in range(16)))
    hub = AdapterHub.init(tmp_path / "hub", str(file), dtype="fp32")
    monkeypatch.setattr(gguf_files, "_unpack", lambda *_: pytest.fail("it was unpacked already"))
    record = hub.add_task("t", rows, epochs=1, rank=2, max_length=48)
    assert record.manifest["task_spec"]["prompt_format"] == "chat"
    again = AdapterHub.open(tmp_path / "hub", dtype="fp32")
    assert again.predict(["thing 3"], task="t")[0].prediction in ("a", "b")
    assert again.verify() == []


def test_a_copy_that_is_lost_or_spoilt_is_made_again(file: Path) -> None:
    info = inspect_base(str(file), "none")
    folder = resolve(str(file))
    shutil.rmtree(folder)
    assert load_base(info, device="cpu", dtype="fp32").path == folder
    (folder / "model.safetensors").write_bytes(b"x")
    load_base(info, device="cpu", dtype="fp32")
    assert (folder / "model.safetensors").stat().st_size > 1000


def test_another_file_in_its_place_is_another_base(file: Path) -> None:
    info = inspect_base(str(file), "none")
    content = bytearray(file.read_bytes())
    content[-5] ^= 0xFF  # a weight
    file.write_bytes(content)
    with pytest.raises(BaseModelError, match="has changed since this hub was made"):
        load_base(info, device="cpu", dtype="fp32")


def test_a_folder_cannot_pretend_to_be_a_gguf_file(file: Path, pico_copy: Callable[..., Path]) -> None:
    from adapterhub_cl.bases.fingerprint import fingerprint

    folder = pico_copy()
    own = fingerprint(folder)
    (folder / "gguf.json").write_text(json.dumps({"file": file.name, "sha256": "0" * 64}))
    assert fingerprint(folder) == own


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 99])
def test_a_damaged_file_is_a_clear_error(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(BaseModelError, match=r"transformers cannot read pico\.F32\.gguf"):
        inspect_base(str(file), "nf4")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (BLOCKS + bytes([LAYERS]), BLOCKS + bytes([LAYERS + 1]), "9 weights that its metadata requires are missing"),
        (b"", b"\xff" * 64, "1 of its tensors have values that are not numbers, such as model"),
    ],
    ids=["a layer too few", "not a number"],
)
def test_a_file_with_damage_inside_is_refused_and_not_kept(
    file: Path, old: bytes, new: bytes, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(old, new, 1) if old else content[: -len(new)] + new)
    for _ in range(2):
        with pytest.raises(BaseModelError, match=why):
            inspect_base(str(file), "none")
    told = capfd.readouterr()
    assert "REPORT" not in told.out + told.err
    assert "\x1b" not in told.err


def test_the_package_that_is_missing_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match="needs the package gguf") as caught:
        inspect_base(str(file), "nf4")
    assert caught.value.hint == "pip install gguf"


def test_a_folder_of_gguf_files_names_one(file: Path) -> None:
    with pytest.raises(BaseModelError, match=r"they are in GGUF, llama\.cpp's format") as caught:
        inspect_base(str(file.parent), "nf4")
    assert str(file) in caught.value.hint


def test_a_cache_without_room_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.bases import kept_weights

    free = shutil.disk_usage(file)._replace(free=10)
    monkeypatch.setattr(kept_weights.shutil, "disk_usage", lambda path: free)
    with pytest.raises(BaseModelError, match="GB free"):
        inspect_base(str(file), "nf4")
