"""`export --format gguf` and `gguf-lora`: what is written is the model, or the LoRA, that others read."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loras import SHAPES, write_lora
from loras import dense as updates

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import AdapterError, ExportRefused, UsageError
from adapterhub_cl.exporting import _gguf_files, _gguf_steps
from adapterhub_cl.exporting._llama_cpp import PYTHON

IDS = torch.arange(3, 40)[None]
LABELS = ("red", "blue")


@pytest.fixture
def hub(pico_path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterHub:
    monkeypatch.delenv(PYTHON, raising=False)
    return AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.float().eval()(input_ids=IDS).logits
    return found


def opened(folder: Path) -> Any:
    return _gguf_steps.opened(folder, "model.gguf", torch.float32)


@pytest.mark.parametrize(("quant", "error"), [("f32", 1e-4), ("f16", 0.05), ("q8_0", 0.5)])
def test_transformers_reads_what_was_written(hub: AdapterHub, tmp_path: Path, quant: str, error: float) -> None:
    hub.import_adapter(write_lora(tmp_path / "lora", size=0.1, rslora=True), "one", labels=LABELS)
    folder = hub.export("one", tmp_path / "out", format="gguf", quant=quant)
    adapted, _ = hub.load("one")
    right, base = logits(adapted), logits(hub.load_base().model)
    found = logits(opened(folder))
    assert (found - right).abs().max() < error
    assert (found - right).norm() < 0.3 * (base - right).norm()  # it is not the base that was written
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["quant"] == quant
    assert proof["opened_by"].startswith("transformers")
    assert {p.name for p in folder.iterdir()} == {"model.gguf", "Modelfile", "README.md", "proof.json", "task.json"}
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_biases_grouped_keys_and_tied_embeddings(pico_path: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    hub = AdapterHub.init(tmp_path / "hub", str(pico_path("qwen2")), quantization="none", dtype="fp32")
    hub.import_adapter(write_lora(tmp_path / "lora", size=0.1, modules=("q_proj", "down_proj")), "one", labels=LABELS)
    folder = hub.export("one", tmp_path / "out", format="gguf", quant="f32")
    adapted, _ = hub.load("one")
    assert torch.allclose(logits(opened(folder)), logits(adapted), atol=1e-4)
    assert "output.weight" not in dict(_gguf_files.read_tensors(folder / "model.gguf"))


def test_the_tokens_are_those_of_the_base(hub: AdapterHub, tmp_path: Path) -> None:
    import gguf

    hub.import_adapter(write_lora(tmp_path / "lora", size=0.1), "one")
    folder = hub.export("one", tmp_path / "out", format="gguf")
    reader, tokenizer = gguf.GGUFReader(folder / "model.gguf"), hub.load_base().tokenizer
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    assert tokens == tokenizer.convert_ids_to_tokens(range(300))
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    assert [k for k, kind in enumerate(types) if kind == gguf.TokenType.CONTROL] == [0, 1, 2]
    assert reader.get_field("tokenizer.ggml.add_bos_token").contents() is True
    assert reader.get_field("tokenizer.chat_template").contents() == tokenizer.chat_template


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"rslora": True},
        {"ranks": {"model.layers.0.self_attn.q_proj": 2}, "alphas": {"model.layers.1.mlp.down_proj": 3.0}},
    ],
)
def test_a_lora_has_its_scaling_inside_and_its_rows_in_order(
    hub: AdapterHub, tmp_path: Path, shape: dict[str, Any]
) -> None:
    import gguf

    modules = ("q_proj", "k_proj", "v_proj", "down_proj")
    source = write_lora(tmp_path / "lora", size=0.1, modules=modules, **shape)
    hub.import_adapter(source, "one", labels=LABELS)
    file = hub.export("one", tmp_path / "out", format="gguf-lora", quant="f32") / "adapter.gguf"
    reader = gguf.GGUFReader(file)
    assert reader.get_field("general.type").contents() == "adapter"
    alpha = reader.get_field("adapter.lora.alpha").contents()
    found = dict(_gguf_files.read_tensors(file))
    right = updates(source)
    for name, place in (("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("mlp.down_proj", "ffn_down")):
        for k in range(2):
            a, b = (found[f"blk.{k}.{place}.weight.lora_{which}"].double() for which in "ab")
            assert alpha == a.shape[0]  # so llama.cpp scales by 1
            delta = b @ a
            if place != "ffn_down":  # llama.cpp rotates neighbours: rows 0, 16, 1, 17, … of a head of 32 ÷ 2
                head = SHAPES[f"model.layers.{k}.{name}"][0] // 2
                order = [h * head + r + half * head // 2 for h in range(2) for r in range(head // 2) for half in (0, 1)]
                assert torch.allclose(delta, right[f"model.layers.{k}.{name}"][order], atol=1e-6)
            else:
                assert torch.allclose(delta, right[f"model.layers.{k}.{name}"], atol=1e-6)


def test_moving_rows_is_undone() -> None:
    plan = _gguf_files.GgufPlan("llama", 1, (4, 2), True)
    rows = torch.arange(64 * 3).reshape(64, 3)
    for key in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
        assert not torch.equal(plan.ordered(key, rows), rows)
        assert torch.equal(plan.restored(key, plan.ordered(key, rows)), rows)
    assert torch.equal(plan.ordered("model.layers.0.self_attn.v_proj.weight", rows), rows)
    plain = _gguf_files.GgufPlan("qwen2", 1, (4, 2), False)
    assert torch.equal(plain.ordered("model.layers.0.self_attn.q_proj.weight", rows), rows)


def test_another_order_of_the_rows_is_found_out(hub: AdapterHub, tmp_path: Path, monkeypatch: Any) -> None:
    hub.import_adapter(write_lora(tmp_path / "lora", size=0.1), "one")
    right = _gguf_files.GgufPlan.ordered
    monkeypatch.setattr(_gguf_files.GgufPlan, "ordered", lambda self, key, rows: right(self, key, rows).flip(0))
    with pytest.raises(ExportRefused, match="is not the model"):
        hub.export("one", tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_said_before(hub: AdapterHub, pico_path: Any, tmp_path: Path) -> None:
    hub.import_adapter(write_lora(tmp_path / "lora"), "one")
    with pytest.raises(UsageError, match="its factors are too narrow for q8_0"):
        hub.export("one", tmp_path / "out", format="gguf-lora", quant="q8_0")
    with pytest.raises(UsageError, match="unknown --quant 'q4_0'"):
        hub.export("one", tmp_path / "out", format="gguf", quant="q4_0")
    with pytest.raises(UsageError, match="no such file"):
        hub.export("one", tmp_path / "out", format="gguf", converter=str(tmp_path / "no.py"))
    other = AdapterHub.init(tmp_path / "other", str(pico_path("gpt2")), quantization="none", dtype="fp32")
    with pytest.raises(AdapterError, match="cannot be written as GGUF here") as caught:
        _gguf_files.plan_for(transformers.AutoConfig.from_pretrained(other.base.source), other.base.architecture)
    assert "--converter" in caught.value.hint


def test_a_failing_converter_leaves_nothing(hub: AdapterHub, tmp_path: Path) -> None:
    hub.import_adapter(write_lora(tmp_path / "lora"), "one")
    (tmp_path / "convert.py").write_text("import sys\nsys.exit('no such architecture')\n")
    with pytest.raises(AdapterError, match="converter failed: no such architecture"):
        hub.export("one", tmp_path / "out", format="gguf", converter=str(tmp_path / "convert.py"))
    assert not (tmp_path / "out").exists()


def llama_python() -> str:
    found = os.environ.get(PYTHON, "")
    if not found and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip(f"{PYTHON} names no Python with llama-cpp-python")
    return found


@pytest.mark.slow  # starts llama.cpp
@pytest.mark.parametrize("format", ["gguf", "gguf-lora"])
def test_llama_cpp_answers_as_the_hub_does(pico_path: Any, tmp_path: Path, format: str) -> None:  # noqa: A002
    llama_python()
    hub = AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    rows = [{"instruction": "Which?", "input": f"{c} {k}", "output": c} for k in range(12) for c in LABELS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hub.add_task("one", tmp_path / "rows.jsonl", epochs=6, rank=4, learning_rate=0.02, batch_size=4, rslora=True)
    folder = hub.export("one", tmp_path / "out", format=format)
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["opened_by"] == "llama.cpp"
    assert proof["same_tokens"] == {"one": 1.0}
    assert proof["tasks"]["one"]["same_answers"] == 1.0
    assert proof["tasks"]["one"]["adapter"] > proof["tasks"]["one"]["base"]
