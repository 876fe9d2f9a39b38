"""LoRA on a base and off again; stored adapters that fit, and each way in which one may not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from toys import same, stir, toy_settings
from transformers import AutoModelForCausalLM

from adapterhub_cl.adapters.lora import (
    new_adapter,
    open_adapter,
    save_adapter,
    stored_adapter,
    trainable,
)
from adapterhub_cl.adapters.lora_config import CONFIG, WEIGHTS, check_config
from adapterhub_cl.adapters.lora_files import LoraFile, read_weights
from adapterhub_cl.errors import AdapterError, IntegrityError, TrainingError, UsageError

IDS = torch.tensor([[1, 50, 60, 70, 80, 90]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def is_bare(base: Any) -> bool:
    return not any(isinstance(m, LoraLayer) for m in base.model.modules()) and not hasattr(base.model, "peft_config")


@pytest.fixture
def stored(pico_base: Any, tmp_path: Path) -> Path:
    """A stored adapter that does something."""
    folder = tmp_path / "v1"
    with new_adapter(pico_base, toy_settings(), "CAUSAL_LM") as model:
        stir(model)
        save_adapter(model, folder, "some/base")
    return folder


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_base_is_the_same_after_the_block(load_pico: Callable[..., Any], quantization: str) -> None:
    base = load_pico("llama", quantization)
    before = logits(base.model)
    for _ in range(2):
        with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
            stir(model)
            assert not torch.equal(logits(model), before)
            model.train()
        assert is_bare(base)
        assert not base.model.training
        assert torch.equal(logits(base.model), before)
        assert not any(p.requires_grad for p in base.model.parameters())

    def fails() -> None:
        with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
            stir(model)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert is_bare(base)
    assert torch.equal(logits(base.model), before)


def test_a_fresh_adapter_changes_nothing_and_follows_from_the_seed(pico_base: Any) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.rand(seed + 3)
        with new_adapter(pico_base, toy_settings(seed=seed), "CAUSAL_LM") as model:
            assert torch.equal(logits(model), logits(pico_base.model))
            found.append({n: p.detach().clone() for n, p in trainable(model).items()})
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_other_first_values_change_nothing_either(pico_base: Any, tmp_path: Path, init: str) -> None:
    with new_adapter(pico_base, toy_settings(), "CAUSAL_LM") as model:
        usual = {n: p.detach().clone() for n, p in trainable(model).items()}
    with new_adapter(pico_base, toy_settings(init=init), "CAUSAL_LM") as model:
        torch.testing.assert_close(logits(model), logits(pico_base.model), atol=1e-5, rtol=1e-5)
        assert not same(usual, {n: p.detach().clone() for n, p in trainable(model).items()})
        save_adapter(model, tmp_path, "some/base")
    assert json.loads((tmp_path / CONFIG).read_text())["init_lora_weights"] is True


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gpt2", "bloom"])
def test_all_linear_is_every_linear_layer_but_the_head(load_pico: Callable[..., Any], kind: str) -> None:
    base = load_pico(kind)
    linear = {"llama": 7, "qwen2": 7, "mistral": 7, "gpt2": 4, "bloom": 4}[kind]
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        names = list(trainable(model))
    assert len(names) == 2 * 2 * linear
    assert not any("lm_head" in name for name in names)
    with new_adapter(base, toy_settings(layers="1"), "CAUSAL_LM") as model:
        assert list(trainable(model)) == [n for n in names if ".1." in n]


def test_settings_reach_peft(pico_base: Any) -> None:
    settings = toy_settings(rank=3, alpha=7.0, rslora=True, target_modules="q_proj, up_proj", layers="0")
    with new_adapter(pico_base, settings, "CAUSAL_LM") as model:
        layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        assert len(layers) == 2
        assert all(layer.r["default"] == 3 for layer in layers)
        assert all(layer.scaling["default"] == pytest.approx(7 / 3**0.5) for layer in layers)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target_modules": "query"}, "'query'"),
        ({"target_modules": "q_proj,nope"}, "'nope'"),
        ({"target_modules": "q_proj,norm"}, "norm"),
        ({"layers": "2"}, "--layers 2"),
        ({"layers": "0,9", "target_modules": "q_proj"}, "--layers 0,9"),
    ],
)
def test_modules_and_layers_that_are_not_there(pico_base: Any, changes: dict[str, str], named: str) -> None:
    before = logits(pico_base.model)
    with pytest.raises(UsageError) as caught, new_adapter(pico_base, toy_settings(**changes), "CAUSAL_LM"):
        pass
    assert named in caught.value.message
    if "layers" not in changes:
        assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in caught.value.hint
    assert is_bare(pico_base)
    assert torch.equal(logits(pico_base.model), before)


def test_trainable_is_exactly_lora(pico_base: Any) -> None:
    with pytest.raises(TrainingError, match="not exactly those of LoRA"):
        trainable(pico_base.model)
    with new_adapter(pico_base, toy_settings(), "CAUSAL_LM") as model:
        lora = next(p for n, p in model.named_parameters() if "lora_A" in n)
        own = next(p for n, p in model.named_parameters() if "lora" not in n)
        lora.requires_grad_(False)
        with pytest.raises(TrainingError, match="lora_A"):
            trainable(model)
        lora.requires_grad_(True)
        own.requires_grad_(True)
        with pytest.raises(TrainingError, match="embed_tokens"):
            trainable(model)
        own.requires_grad_(False)
        assert len(trainable(model)) == 28


def test_plain_peft_opens_what_was_saved(pico_base: Any, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    with new_adapter(pico_base, toy_settings(rslora=True, layers="1"), "CAUSAL_LM") as model:
        stir(model)
        right = logits(model)
        save_adapter(model, tmp_path, "some/base")
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == "some/base"
    stock = AutoModelForCausalLM.from_pretrained(pico_path("llama"), dtype=torch.float32)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(stock, tmp_path)), right, atol=1e-6, rtol=1e-6)
    with stored_adapter(pico_base, tmp_path) as model:
        assert torch.equal(logits(model), right)
        assert not any(p.requires_grad for p in model.parameters())
    assert is_bare(pico_base)


def test_starting_from_a_stored_adapter(pico_base: Any, stored: Path) -> None:
    with stored_adapter(pico_base, stored) as model:
        right = logits(model)
    with new_adapter(pico_base, toy_settings(dropout=0.5, rank=7), "CAUSAL_LM", stored) as model:
        assert len(trainable(model)) == 28
        assert torch.equal(logits(model), right)
        model.train()
        with torch.no_grad():
            assert not torch.equal(model(input_ids=IDS).logits, right), "the new run's dropout"
    assert is_bare(pico_base)


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def first(weights: dict[str, torch.Tensor]) -> str:
    return min(weights)


SPOILT: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], type[Exception], str]] = {
    "missing": (lambda w: w.pop(first(w)), AdapterError, r"1 missing \(first: base_model.*\), 0 unexpected"),
    "unexpected": (
        lambda w: w.update({"base_model.model.x.lora_A.weight": torch.ones(2, 1)}),
        AdapterError,
        "unexpected",
    ),
    "wrong shape": (lambda w: w.update({first(w): torch.ones(3, 3)}), AdapterError, "does not fit this base"),
    "NaN": (lambda w: w[first(w)].fill_(float("nan")), IntegrityError, "NaN or infinity"),
    "infinity": (lambda w: w[first(w)][0].fill_(float("inf")), IntegrityError, "NaN or infinity"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_tensors_that_do_not_fit(pico_base: Any, stored: Path, how: str) -> None:
    change, kind, message = SPOILT[how]
    before = logits(pico_base.model)
    spoil(stored, change)
    with pytest.raises(kind, match=message):
        open_adapter(pico_base.model, stored)
    assert is_bare(pico_base), "the base is usable again"
    assert torch.equal(logits(pico_base.model), before)


def test_an_adapter_of_another_architecture(load_pico: Callable[..., Any], pico_base: Any, tmp_path: Path) -> None:
    with new_adapter(load_pico("gpt2"), toy_settings(), "CAUSAL_LM") as model:
        save_adapter(model, tmp_path, "gpt2")
    with pytest.raises(AdapterError, match="does not fit this base"):
        open_adapter(pico_base.model, tmp_path)
    assert is_bare(pico_base)


@pytest.mark.parametrize("keep", [0, 5, 100, 2000])
def test_truncated_weights(pico_base: Any, stored: Path, keep: int) -> None:
    (stored / WEIGHTS).write_bytes((stored / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        open_adapter(pico_base.model, stored)
    assert caught.value.hint == "run cl-adapter verify"
    (stored / WEIGHTS).unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_weights(stored)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"peft_type": "IA3"}, AdapterError, "is IA3, not LoRA"),
        ({"peft_type": None}, AdapterError, "not LoRA"),
        ({"init_lora_weights": "pissa"}, AdapterError, "initialised by pissa"),
        ({"init_lora_weights": "pissa_niter_16"}, AdapterError, "initialised by pissa_niter_16"),
        ({"init_lora_weights": "olora"}, AdapterError, "initialised by olora"),
        ({"layer_replication": [[0, 1]]}, AdapterError, "uses layer_replication"),
        ({"target_modules": 5}, AdapterError, "target_modules"),
        ({"target_parameters": ["experts.down_proj"]}, AdapterError, "uses target_parameters"),
        ({"lora_bias": True}, AdapterError, "uses lora_bias"),
        ({"bias": "all"}, AdapterError, "uses bias"),
        ({"alora_invocation_tokens": [5]}, AdapterError, "uses alora_invocation_tokens"),
        ({"trainable_token_indices": [5]}, AdapterError, "uses trainable_token_indices"),
        ({"of_a_later_peft": 3}, AdapterError, "uses of_a_later_peft"),
        ({"rank_pattern": 5}, AdapterError, "rank_pattern"),
        ({"lora_alpha": float("inf")}, AdapterError, "alpha inf"),
        ({"task_type": "SEQ_CLS"}, AdapterError, "SEQ_CLS"),
        ({"modules_to_save": ["lm_head"]}, AdapterError, r"stores whole modules \(lm_head\)"),
    ],
)
def test_configs_that_cannot_be_served(
    stored: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    config = check_config(stored)
    (stored / CONFIG).write_text(json.dumps({**config, **changes}))
    with pytest.raises(kind, match=message):
        check_config(stored)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r".*\.(q|v|k|o|gate|up|down)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": "(a|.)*x"},  # it would never end: it is not tried
        {"exclude_modules": ["lm_head"]},
        {"exclude_modules": r".*lm_head"},
        {"layers_pattern": "layers", "layers_to_transform": [0, 1]},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"ensure_weight_tying": True},
        {"loftq_config": {"loftq_bits": 4}},
    ],
)
def test_how_its_layers_were_asked_for_does_not_matter(pico_base: Any, stored: Path, changes: dict[str, Any]) -> None:
    with stored_adapter(pico_base, stored) as model:
        right = logits(model)
    config = check_config(stored)
    (stored / CONFIG).write_text(json.dumps({**config, **changes}))
    with stored_adapter(pico_base, stored) as model:
        assert torch.equal(logits(model), right)
    with LoraFile(stored) as file:
        assert len(file.modules) == 14


@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_inits_that_leave_the_base_alone_are_fine(stored: Path, init: Any) -> None:
    config = {**check_config(stored), "init_lora_weights": init}
    (stored / CONFIG).write_text(json.dumps(config))
    assert check_config(stored) == config


@pytest.mark.parametrize("content", ["", "{", "\xff", None])
def test_configs_that_cannot_be_read(stored: Path, content: str | None) -> None:
    if content is None:
        (stored / CONFIG).unlink()
    else:
        (stored / CONFIG).write_bytes(content.encode("latin-1"))
    with pytest.raises(IntegrityError, match="cannot be read"):
        check_config(stored)


def test_a_config_that_is_no_object(stored: Path) -> None:
    (stored / CONFIG).write_text("[]")
    with pytest.raises(AdapterError, match="is list, not LoRA"):
        check_config(stored)


def test_starting_from_what_cannot_be_served_is_refused(pico_base: Any, stored: Path) -> None:
    config = {**check_config(stored), "init_lora_weights": "pissa"}
    (stored / CONFIG).write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="pissa"), new_adapter(pico_base, toy_settings(), "CAUSAL_LM", stored):
        pass
    assert is_bare(pico_base)


def test_weights_made_by_plain_peft_are_opened(
    pico_base: Any, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    stock = AutoModelForCausalLM.from_pretrained(pico_path("llama"), dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}, task_type="CAUSAL_LM")
    made = get_peft_model(stock, config)
    stir(made)
    made.save_pretrained(tmp_path / "peft")
    copy = Path(shutil.copytree(tmp_path / "peft", tmp_path / "copy"))
    check_config(copy)
    with stored_adapter(pico_base, copy) as model:
        torch.testing.assert_close(logits(model), logits(made), atol=1e-6, rtol=1e-6)
