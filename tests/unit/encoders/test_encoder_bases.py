"""Encoders as bases: which objectives they offer, how they are loaded, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import COLOURS, data, new_hub

from adapterhub_cl import AdapterHub, objectives
from adapterhub_cl.bases.encoders import head_of, put_head, take_head
from adapterhub_cl.bases.kinds import is_encoder, objectives_of
from adapterhub_cl.bases.loading import inspect_base
from adapterhub_cl.errors import AdapterError, BaseModelError, UsageError
from adapterhub_cl.types import BaseInfo


@pytest.mark.parametrize(
    ("architecture", "offered"),
    [
        ("LlamaForCausalLM", ("causal_lm",)),
        ("BertLMHeadModel", ("causal_lm",)),
        ("BertModel", ("sequence_classification",)),
        ("RobertaForSequenceClassification", ("sequence_classification",)),
        ("BertForMaskedLM", ("sequence_classification", "masked_lm")),
        ("DistilBertForMaskedLM", ("sequence_classification", "masked_lm")),
        ("ModernBertForMaskedLM", ("sequence_classification", "masked_lm")),
        ("T5ForConditionalGeneration", ()),
        ("BartModel", ()),
        ("ViTModel", ()),
        ("LlamaModel", ()),
    ],
)
def test_an_architecture_decides_which_objectives_a_base_offers(architecture: str, offered: tuple[str, ...]) -> None:
    assert objectives_of(architecture) == offered
    assert is_encoder(architecture) == ("sequence_classification" in offered)


def test_the_objective_of_a_base_is_found_in_one_place(pico_path: Callable[[str], Path]) -> None:
    body, whole, causal = (inspect_base(str(pico_path(kind)), "none") for kind in ("bert_body", "bert", "llama"))
    assert [objectives.name_for(whole, kind) for kind in ("choice", "text")] == ["sequence_classification", "masked_lm"]
    assert [objectives.name_for(causal, kind) for kind in ("choice", "text", "generation")] == ["causal_lm"] * 3
    assert (objectives.of(body).task_type, objectives.of(causal).task_type) == ("SEQ_CLS", "CAUSAL_LM")
    with pytest.raises(UsageError, match="BertModel without its head") as caught:
        objectives.name_for(body, "text")
    assert "ForMaskedLM" in caught.value.hint
    with pytest.raises(UsageError, match="writes no free answers"):
        objectives.name_for(whole, "generation")


@pytest.mark.parametrize(
    ("kind", "final", "modules"),
    [
        ("bert", "classifier", ("bert.pooler.dense", "classifier")),
        ("bert_body", "classifier", ("classifier",)),
        ("roberta", "classifier.out_proj", ("classifier",)),
        ("distilbert", "classifier", ("classifier", "pre_classifier")),
    ],
)
def test_what_a_checkpoint_lacks_between_body_and_labels_is_drawn_once(
    load_pico: Callable[..., Any], kind: str, final: str, modules: tuple[str, ...]
) -> None:
    one, other = load_pico(kind), load_pico(kind)
    head, again = head_of(one.model), head_of(other.model)
    assert head is not None
    assert again is not None
    assert (head.final, head.modules, head.layout) == (final, modules, {})
    assert bool(head.neck) == (kind != "bert_body")
    assert all(torch.equal(value, again.neck[key]) for key, value in head.neck.items())
    assert not any(p.requires_grad for p in one.model.parameters())
    assert one.context == (60 if kind == "roberta" else 64)


def test_a_head_that_is_taken_off_leaves_the_base_as_it_was(load_pico: Callable[..., Any]) -> None:
    base = load_pico("bert")
    head = head_of(base.model)
    assert head is not None
    neck = {key: value.clone() for key, value in head.neck.items()}
    tensors = {key: torch.zeros_like(value) for key, value in neck.items()}
    put_head(base.model, {"t": {"a": 0, "b": 1}}, {**tensors, head.weight: torch.ones(2, 32)}, trainable=True)
    assert base.model.get_submodule(head.final).weight.requires_grad
    assert all(not base.model.get_parameter(key).any() for key in neck)
    take_head(base.model)
    assert head.layout == {}
    assert not any(p.requires_grad for p in base.model.parameters())
    assert all(torch.equal(base.model.get_parameter(key), value) for key, value in neck.items())
    with pytest.raises(AdapterError, match=r"head does not fit this base: it has classifier.weight \(2, 31\)"):
        put_head(base.model, {}, {head.weight: torch.ones(2, 31)})


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_only_the_layers_of_an_encoder_are_quantised(load_pico: Callable[..., Any], quantization: str) -> None:
    model = load_pico("bert_body", quantization).model
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert (
        kinds["bert.encoder.layer.0.attention.self.query"]
        == {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]
    )
    assert (kinds["classifier"], kinds["bert.pooler.dense"]) == ("Linear", "Linear")


def test_what_an_encoder_cannot_do_is_told_before_anything_is_loaded(
    pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert_body"))
    monkeypatch.setattr(AdapterHub, "load_base", lambda self: pytest.fail("the base was loaded"))
    free = tmp_path / "free.jsonl"
    free.write_text("".join(f'{{"input": "say {k}", "output": "a long answer {k} of its own"}}\n' for k in range(6)))
    text = tmp_path / "facts.txt"
    text.write_text("The river is long.\nThe house is old.\n")
    good = data(tmp_path, COLOURS)
    with pytest.raises(UsageError, match="writes no free answers"):
        hub.add_task("free", free)
    with pytest.raises(UsageError, match="raw text is learned by masked_lm"):
        hub.add_task("facts", text)
    for options, told in (
        ({"replay": "generated:5"}, "--replay generated:5 needs a base that writes"),
        ({"augment": "generation:1"}, "--augment generation needs a base that writes"),
        ({"prompt_format": "alpaca"}, "a prompt format needs a base that writes"),
        ({"strategy": "sdft"}, "--strategy sdft needs a base that writes"),
    ):
        with pytest.raises(UsageError, match=told):
            hub.add_task("colours", good, **options)
    for ask in (lambda: hub.generate("Go on"), lambda: hub.write([{"role": "user", "content": "Hi"}])):
        with pytest.raises(UsageError, match="needs a base that writes"):
            ask()
    assert hub.list() == []


def test_a_hub_made_before_encoders_has_a_causal_base() -> None:
    assert objectives.name_for(BaseInfo("tiny", "f" * 64), "choice") == "causal_lm"


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_base_without_a_tokenizer_is_refused_before_a_hub_is_made(
    kind: str, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    for file in (*pico_path(kind).glob("*.safetensors"), pico_path(kind) / "config.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(BaseModelError, match="has no tokenizer"):
        AdapterHub.init(tmp_path / "hub", base=str(folder), quantization="none")
    assert not (tmp_path / "hub" / "hub.toml").exists()


def test_what_an_encoder_has_no_use_for_is_refused(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert"))
    file = data(tmp_path, COLOURS)
    with pytest.raises(UsageError, match="--prompt-loss"):
        hub.add_task("colours", file, prompt_loss=0.5)
    with pytest.raises(UsageError, match="'classifier' matches no layer") as caught:
        hub.add_task("colours", file, target_modules="classifier", epochs=1)
    assert caught.value.hint == "its linear layers are dense, key, query, value"
