"""LoRA is added to layers that a text passes, and a version that could not serve is not published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from toys import stir, toy_settings

from adapterhub_cl.adapters.lora import new_adapter, open_adapter, save_adapter
from adapterhub_cl.adapters.lora_config import check_config
from adapterhub_cl.adapters.serving_check import check_served
from adapterhub_cl.adapters.targets import left_out, targets_of
from adapterhub_cl.bases.loading import inspect_base, load_base
from adapterhub_cl.errors import AdapterError, BaseModelError, UsageError


@pytest.fixture(scope="module")
def load_family(_torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def load(family: str) -> Any:
        if family not in made:
            folder = build(family, tmp_path_factory.mktemp("family") / family.replace(":", "-"))
            made[family] = load_base(inspect_base(str(folder), "none"), device="cpu", dtype="fp32")
        return made[family]

    return load


@pytest.mark.parametrize(
    ("family", "has", "lacks"),
    [
        ("mixtral", {"q_proj", "o_proj"}, {"gate", "gate_up_proj", "down_proj"}),
        ("qwen3_moe", {"q_proj"}, {"gate_proj", "up_proj", "down_proj"}),
        ("qwen3_next", {"in_proj_qkvz", "out_proj"}, {"gate_proj", "conv1d"}),
        ("phimoe", {"q_proj"}, {"router", "gate"}),
        ("llama4_text", {"q_proj"}, {"router"}),
        ("mamba", {"in_proj", "x_proj"}, {"out_proj", "dt_proj", "conv1d"}),
        ("falcon", {"query_key_value", "dense"}, {"lm_head"}),
    ],
)
def test_a_version_on_any_base_opens_again_and_changes_it(
    load_family: Callable[[str], Any], tmp_path: Path, family: str, has: set[str], lacks: set[str]
) -> None:
    base = load_family(family)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        stir(model)
        save_adapter(model, tmp_path, "some/base")
        check_served(model, base, tmp_path, "it")
        with torch.no_grad():
            learned = model.eval()(input_ids=ids).logits
    config = check_config(tmp_path)
    last = {name.rpartition(".")[2] for name in config["target_modules"]}
    assert has <= last
    assert not last & lacks
    assert not config["target_parameters"]
    model = open_adapter(base.model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, learned, atol=1e-5, rtol=1e-5)
    model.unload()
    plain = PeftModel.from_pretrained(base.model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, learned, atol=1e-5, rtol=1e-5)
        plain.unload()
        assert torch.equal(base.model(input_ids=ids).logits, before)


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen3_5"])
def test_the_text_part_alone_of_a_base_with_images(load_family: Callable[[str], Any], family: str) -> None:
    base = load_family(family)
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        found = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert found
    assert not [name for name in found if "vision" in name or "visual" in name or "multi_modal" in name]


def test_what_is_left_out_is_told(load_family: Callable[[str], Any], pico_base: Any) -> None:
    assert left_out(pico_base) == ""
    assert "the experts" in left_out(load_family("mixtral"))
    assert "dt_proj, out_proj stay" in left_out(load_family("mamba"))


def test_layers_that_cannot_carry_lora_are_refused_by_name(load_family: Callable[[str], Any]) -> None:
    base = load_family("mamba")
    with pytest.raises(UsageError, match="'out_proj' matches no layer of this base that can have a LoRA"):
        targets_of(base, ["in_proj", "out_proj"], None)
    with pytest.raises(UsageError, match=r"'nothing' matches no layer of this base$"):
        targets_of(base, ["nothing"], None)
    assert targets_of(base, ["in_proj"], None) == ["in_proj"]
    assert targets_of(base, ["in_proj"], [1]) == ["backbone.layers.1.mixer.in_proj"]


def test_a_version_that_no_text_passes_is_refused(pico_base: Any, tmp_path: Path) -> None:
    with new_adapter(pico_base, toy_settings(target_modules="q_proj"), "CAUSAL_LM") as model:
        stir(model)
        save_adapter(model, tmp_path, "some/base")
        check_served(model, pico_base, tmp_path, "it")
        layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        whole = model.get_submodule("base_model.model.model.layers.0.self_attn")
        whole.q_proj = torch.nn.Linear(layer.in_features, layer.out_features)  # the text goes past the LoRA now
        whole.unread = layer
        try:
            with pytest.raises(
                AdapterError, match=r"it changes 1 layers that text never passes through, such as .*unread"
            ):
                check_served(model, pico_base, tmp_path, "it")
        finally:
            whole.q_proj = layer
            del whole.unread


def test_a_version_that_changes_nothing_is_refused(pico_base: Any, tmp_path: Path) -> None:
    with new_adapter(pico_base, toy_settings(target_modules="q_proj"), "CAUSAL_LM") as model:
        stir(model)
        save_adapter(model, tmp_path, "some/base")
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.scaling["default"] = 1e-9
        check_served(model, pico_base, tmp_path, "it")  # small as it is, it does something
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.scaling["default"] = 0.0
        with pytest.raises(AdapterError, match="answers the same without it"):
            check_served(model, pico_base, tmp_path, "it")


@pytest.mark.parametrize(
    ("family", "reason"), [("xlnet", "from left to right"), ("t5", "neither"), ("bart", "neither")]
)
def test_bases_of_another_kind_are_refused(tmp_path: Path, family: str, reason: str) -> None:
    with pytest.raises(BaseModelError, match=reason):
        inspect_base(str(build(family, tmp_path)), "none")
