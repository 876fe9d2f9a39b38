"""What a folder holds is read when a hub is made: how its weights are quantised, and whose tokenizer lies there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from safetensors.torch import load_file, save_file

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases import already_quantised
from adapterhub_cl.bases.loading import inspect_base, load_base
from adapterhub_cl.errors import BaseModelError, DataError
from adapterhub_cl.types import BaseInfo


def tell(folder: Path, **more: Any) -> Path:
    """The folder with more in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"quant_method": "bitsandbytes", "_load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
    ],
)
@pytest.mark.parametrize("asked", ["nf4", "none", "int8"])
def test_what_is_quantised_already_is_recorded_as_it_is(
    pico_copy: Callable[..., Path], told: dict[str, Any], kind: str, asked: str
) -> None:
    assert inspect_base(str(tell(pico_copy(), quantization_config=told)), asked).quantization == kind


@pytest.mark.parametrize(
    ("parameters", "quantization", "asked", "says"),
    [
        (135_000_000, "nf4", "nf4", "needs 0.3 GB in 16 bits; --quantization none"),
        (135_000_000, "none", "none", ""),
        (5_900_000, "nf4", "nf4", ""),
        (7_000_000_000, "nf4", "nf4", ""),
        (7_000_000_000, "fp8", "nf4", r"already quantised \(fp8\)"),
    ],
)
def test_a_new_hub_is_told_how_its_base_is_held_best(parameters: int, quantization: str, asked: str, says: str) -> None:
    told = already_quantised.advice(BaseInfo("b", "0", quantization, None, "LlamaForCausalLM", parameters), asked)
    assert re.search(says, told)
    assert bool(told) == bool(says)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"quant_method": "gptq", "bits": 4}, "by gptq, which needs gptqmodel and is not supported"),
        ({"quant_method": "awq", "bits": 4}, "by awq, which needs gptqmodel and is not supported"),
        ({"quant_method": "compressed-tensors"}, "by compressed-tensors, which needs compressed-tensors and is not"),
        ({"quant_method": "hqq"}, "by hqq, which needs hqq and is not supported"),
        ({"quant_method": "mxfp4"}, "by mxfp4, which adapters cannot be trained on"),
        ({"quant_method": "fbgemm_fp8"}, "by fbgemm_fp8, which adapters cannot be trained on"),
        ({"quant_method": "bitsandbytes"}, "by bitsandbytes with settings that are not known here"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "only its 8-bit"),
        ({"quant_method": "torchao"}, "only its 8-bit weights can be trained on"),
        ({"bits": 4}, "by an unknown method, which adapters cannot be trained on"),
    ],
)
def test_other_kinds_of_quantisation_are_refused(
    pico_copy: Callable[..., Path], told: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = tell(pico_copy(), quantization_config=told)
    with pytest.raises(BaseModelError, match=f"already quantised, .*{why}") as caught:
        AdapterHub.init(tmp_path / "hub", str(folder))
    assert "16-bit checkpoint" in caught.value.hint
    assert not (tmp_path / "hub").exists()
    inner = tell(pico_copy("qwen2"), text_config={"quantization_config": told})
    with pytest.raises(BaseModelError, match=why):
        inspect_base(str(inner), "none")


TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}


@pytest.mark.parametrize("told", [TORCHAO, {"quant_method": "torchao", "quant_type": "int8_weight_only"}])
def test_a_package_that_is_missing_is_named(
    pico_copy: Callable[..., Path], told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tell(pico_copy(), quantization_config=told)
    monkeypatch.setattr(already_quantised, "find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match="the package torchao is not installed") as caught:
        inspect_base(str(folder), "nf4")
    assert caught.value.hint.startswith("pip install torchao; or")
    monkeypatch.setattr(already_quantised, "find_spec", lambda name: object())
    assert inspect_base(str(folder), "nf4").quantization == "torchao"


def test_torchaos_tensors_become_plain_ones() -> None:
    class Packed(torch.Tensor):
        def dequantize(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor) + 1

    layer = torch.nn.Linear(2, 3)
    layer.weight = torch.nn.Parameter(torch.zeros(3, 2).as_subclass(Packed), requires_grad=False)
    bias = layer.bias
    already_quantised.made_plain(layer)
    assert type(layer.weight.data) is torch.Tensor
    assert torch.equal(layer.weight, torch.ones(3, 2))
    assert layer.bias is bias


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_config_that_claims_quantised_weights_is_refused(pico_copy: Callable[..., Path], bits: str) -> None:
    folder = tell(pico_copy(), quantization_config={"quant_method": "bitsandbytes", bits: True})
    with pytest.raises(BaseModelError, match="says that bitsandbytes quantised its weights, but model"):
        load_base(inspect_base(str(folder), "nf4"), device="cpu")


def test_fp8_weights_are_loaded_as_plain_ones(pico_copy: Callable[..., Path], load_pico: Callable[..., Any]) -> None:
    folder = tell(
        pico_copy(),
        quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"},
    )
    weights = dict(load_file(folder / "model.safetensors"))
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        blocks = weights[name].float().unfold(0, 8, 8).unfold(1, 8, 8)
        scale = blocks.abs().amax((2, 3)) / 448
        wide = scale.repeat_interleave(8, 0).repeat_interleave(8, 1)
        weights[name], weights[f"{name}_scale_inv"] = (weights[name] / wide).to(torch.float8_e4m3fn), scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    info = inspect_base(str(folder), "nf4")
    assert info.quantization == "fp8"
    model, plain = load_base(info, device="cpu", dtype="fp32").model, load_pico().model
    for name, value in plain.named_parameters():
        found = model.get_parameter(name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, value, rtol=0.07, atol=1e-3)


def test_a_base_that_was_saved_in_4_bits_is_loaded_so(load_pico: Callable[..., Any], tmp_path: Path) -> None:
    first = load_pico("llama", "nf4")
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    info = inspect_base(str(tmp_path), "none")
    assert info.quantization == "nf4"
    again = load_base(info, device="cpu", dtype="fp32")
    ids = torch.tensor([[1, 50, 60]])
    with torch.no_grad():
        torch.testing.assert_close(again.model(input_ids=ids).logits, first.model(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_a_tokenizer_larger_than_the_embeddings(pico_copy: Callable[..., Path], name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = pico_copy()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({name: "<new>"})
    tokenizer.save_pretrained(folder)
    said = f"the {name.replace('_', ' ')} <new> is id 300, but the base has 300 embeddings"
    with pytest.raises(BaseModelError, match=said):
        AdapterHub.init(tmp_path / "hub", str(folder), quantization="none")
    assert not (tmp_path / "hub").exists()


def test_a_text_with_a_token_that_the_base_does_not_know(pico_copy: Callable[..., Path], tmp_path: Path) -> None:
    from loras import write_lora
    from transformers import AutoTokenizer

    folder = pico_copy()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    hub = AdapterHub.init(tmp_path / "hub", str(folder), quantization="none", dtype="fp32")
    hub.import_adapter(write_lora(tmp_path / "x", size=0.1), "x", labels=("a", "b"))
    hub.import_adapter(write_lora(tmp_path / "y", size=0.1), "y", labels=("<new>", "b"))
    with pytest.raises(DataError, match="the label '<new>' has a token with the id 300, but the base has only 300"):
        hub.predict(["a text"], task="y")
    assert len(hub.predict(["a text"], adapter="x")) == 1
    assert len(hub.predict(["a new text"], task="x")) == 1
    said = r"contains the token '<new>' \(id 300\), but the base has only 300 embeddings"
    with pytest.raises(DataError, match=said):
        hub.predict(["a <new> text"], task="x")
    with hub.engine() as engine:
        with pytest.raises(DataError, match=said):
            engine.predict(["a <new> text"], task="x")
        assert engine.predict(["a new text"], task="x")
    with pytest.raises(DataError, match=said):
        hub.generate("a <new> text", task="x")


def test_a_chat_template_with_a_token_that_the_base_does_not_know(
    pico_copy: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = pico_copy()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.chat_template = "{% for m in messages %}<new>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    tokenizer.save_pretrained(folder)
    hub = AdapterHub.init(tmp_path / "hub", str(folder), quantization="none", dtype="fp32")
    with pytest.raises(DataError, match=r"the chat template writes the token '<new>' \(id 300\)") as told:
        hub.generate("a text", adapter="base")
    assert "--prompt-format instruction" in told.value.hint


def test_layers_that_mamba_reads_by_their_weight_are_not_quantised(tmp_path: Path) -> None:
    base = load_base(inspect_base(str(build("mamba", tmp_path)), "nf4"), device="cpu", dtype="fp32")
    kinds = {name.rpartition(".")[2]: type(module).__name__ for name, module in base.model.named_modules()}
    assert kinds["in_proj"] == kinds["x_proj"] == "Linear4bit"
    assert kinds["dt_proj"] == kinds["out_proj"] == kinds["lm_head"] == "Linear"
    with torch.no_grad():
        assert torch.isfinite(base.model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()
