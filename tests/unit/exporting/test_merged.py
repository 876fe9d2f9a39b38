"""`export --format merged`: a model that plain transformers opens computes what base and adapter compute together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoder_hubs import new_hub, teach
from loras import write_lora

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import ExportRefused, UsageError
from adapterhub_cl.progress import Reporter

IDS = torch.arange(3, 40)[None]


def hub_on(pico_path: Any, folder: Path, kind: str = "llama", quantization: str = "none") -> AdapterHub:
    return AdapterHub.init(folder / "hub", str(pico_path(kind)), quantization=quantization, dtype="fp32")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.float().eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("shape", [{}, {"rslora": True}, {"ranks": {"model.layers.0.mlp.down_proj": 2}}])
def test_the_model_computes_what_the_adapter_does(pico_path: Any, tmp_path: Path, shape: dict[str, Any]) -> None:
    hub = hub_on(pico_path, tmp_path)
    hub.import_adapter(write_lora(tmp_path / "lora", size=0.1, **shape), "one", labels=("red", "blue"))
    folder = hub.export("one", tmp_path / "out", format="merged", base_name="owner/pico")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    adapted, _ = hub.load("one")
    assert torch.allclose(logits(model), logits(adapted), atol=1e-4)
    assert not torch.allclose(logits(model), logits(hub.load_base().model), atol=1e-2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == hub.load_base().tokenizer.chat_template
    told = json.loads((folder / "task.json").read_text())
    assert told["merged_into"] == "original"
    assert json.loads((folder / "config.json").read_text())["_name_or_path"] == "owner/pico"
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
        assert hub.base.source.encode() not in file.read_bytes()


def test_dora_is_merged(pico_path: Any, tmp_path: Path) -> None:
    from toys import toy_settings, train

    from adapterhub_cl.adapters.lora import save_adapter

    hub = hub_on(pico_path, tmp_path)
    base = hub.load_base()
    (tmp_path / "dora").mkdir()
    train(base, toy_settings(dora=True), after=lambda model, _: save_adapter(model, tmp_path / "dora", "pico"))
    hub.import_adapter(tmp_path / "dora", "one")
    folder = hub.export("one", tmp_path / "out", format="merged")
    adapted, _ = hub.load("one")
    assert torch.allclose(logits(transformers.AutoModelForCausalLM.from_pretrained(folder)), logits(adapted), atol=1e-3)


def test_of_a_4_bit_base_the_better_weights_are_written(pico_path: Any, tmp_path: Path) -> None:
    hub = hub_on(pico_path, tmp_path, quantization="nf4")
    rows = [{"instruction": "Which?", "input": f"{c} {k}", "output": c} for k in range(12) for c in ("red", "blue")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hub.add_task("one", tmp_path / "rows.jsonl", epochs=2, rank=4, learning_rate=0.02, batch_size=4, max_length=32)
    notes: list[str] = []
    reporter = Noting(notes)
    folder = hub.export("one", tmp_path / "out", format="merged", min_retention=0, reporter=reporter)
    proof = json.loads((folder / "proof.json").read_text())
    assert set(proof["tried"]) == {"original", "dequantised"}
    assert proof["merged_into"] == max(proof["tried"], key=lambda where: proof["tried"][where])
    assert proof["tasks"]["one"]["n"] == 24
    assert any("retention when added to the original weights" in note for note in notes)


class Noting(Reporter):
    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_of_the_tied_output_layer_unties_it(pico_path: Any, tmp_path: Path) -> None:
    from pico import make_tokenizer, pico_config

    config = pico_config("llama")
    config.tie_word_embeddings = True
    torch.manual_seed(3)
    base = tmp_path / "base"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    hub = AdapterHub.init(tmp_path / "hub", str(base), quantization="none", dtype="fp32")
    from stored_loras import write_factors

    generator = torch.Generator().manual_seed(0)
    factors = (torch.randn(300, 4, generator=generator) * 0.3, torch.randn(4, 32, generator=generator) * 0.3)
    write_factors(tmp_path / "lora", {"lm_head": factors}, alpha=4.0, rslora=False, targets=["lm_head"])
    hub.import_adapter(tmp_path / "lora", "one", any_base=True)
    folder = hub.export("one", tmp_path / "out", format="merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    adapted, _ = hub.load("one")
    assert torch.allclose(logits(model), logits(adapted), atol=1e-4)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)


def test_an_encoder_leaves_with_its_head(pico_path: Any, tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert"))
    teach(hub, tmp_path, "colours", ("red", "blue", "green"))
    folder = hub.export("colours", tmp_path / "out", format="merged")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    pipe = transformers.pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None)
    text = "blue apple 7"
    right = hub.predict([text], adapter="colours")[0]
    bare = json.loads((folder / "task.json").read_text())["tasks"]["colours"]["prompt"]["bare"]
    asked = bare.replace("{input}", text).removeprefix("<s>").removesuffix("</s>")
    found = {row["label"]: row["score"] for row in pipe([asked])[0]}
    assert found == pytest.approx(right.scores, abs=1e-4)
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["tasks"]["colours"]["same_answers"] == 1.0


def test_an_export_that_loses_its_task_is_refused(
    pico_path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert"))
    teach(hub, tmp_path, "colours", ("red", "blue", "green"))
    monkeypatch.setattr("adapterhub_cl.exporting._whole_model._add", lambda model, lora: _spoil(model))
    with pytest.raises(ExportRefused, match=r"retains less than 0\.99 of colours") as caught:
        hub.export("colours", tmp_path / "out", format="merged")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def _spoil(model: Any) -> int:
    for name, value in model.named_parameters():
        if "query" in name or "word_embeddings" in name:
            value.zero_()
    return 1


def test_an_update_that_vanishes_is_refused(pico_path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = hub_on(pico_path, tmp_path)
    hub.import_adapter(write_lora(tmp_path / "lora"), "one")
    monkeypatch.setattr("adapterhub_cl.exporting._whole_model._add", lambda model, lora: 0)
    with pytest.raises(ExportRefused, match="changes nothing: its updates vanish in float32"):
        hub.export("one", tmp_path / "out", format="merged")
    assert not (tmp_path / "out").exists()


def test_an_option_of_another_format_is_refused(pico_path: Any, tmp_path: Path) -> None:
    hub = hub_on(pico_path, tmp_path)
    hub.import_adapter(write_lora(tmp_path / "lora"), "one")
    with pytest.raises(UsageError, match="--min-retention is not an option of --format peft") as caught:
        hub.export("one", tmp_path / "out", min_retention=0.5)
    assert "merged" in caught.value.hint
    with pytest.raises(UsageError, match="--min-retention must be between 0 and 1"):
        hub.export("one", tmp_path / "out", format="merged", min_retention=7)
