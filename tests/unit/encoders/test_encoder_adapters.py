"""An encoder's adapter: its head is trained with it, stored in PEFT's own form, and comes back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import ANIMALS, COLOURS, QUICK, data, new_hub, rows, teach
from peft import LoraConfig, PeftModel, get_peft_model
from pico import ENCODERS
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from adapterhub_cl import AdapterHub, types
from adapterhub_cl.adapters.head_files import read_layout
from adapterhub_cl.errors import AdapterError, IntegrityError, TrainingInterrupted, UsageError

TEXTS = ["red stone", "blue river house cloud 71 and whatever else", "green"]

CUT = {"truncation": True, "max_length": 32}  # as in the training of these hubs


@pytest.fixture(scope="module")
def taught(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    """A hub with two isolated tasks."""
    folder = tmp_path_factory.mktemp("encoder")
    hub = new_hub(folder / "hub", pico_path("bert_body"))
    teach(hub, folder, "colours", COLOURS)
    teach(hub, folder, "animals", ANIMALS)
    return hub


def logits_of(hub: AdapterHub, ref: str, labels: int, **cut: Any) -> torch.Tensor:
    """What plain transformers and PEFT say to TEXTS."""
    plain = AutoModelForSequenceClassification.from_pretrained(hub.base.source, num_labels=labels, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(hub.path(ref))).eval()
    tokenizer = hub.load_base().tokenizer
    with torch.no_grad():
        return model(**tokenizer(TEXTS, return_tensors="pt", padding=True, **cut)).logits


def test_a_task_is_learned_scored_and_answered(taught: AdapterHub) -> None:
    record = taught.get("colours")
    assert record.metrics["accuracy"] > 0.8
    assert [p.prediction for p in taught.predict(TEXTS, task="colours")] == ["red", "blue", "green"]
    best = next(s for s in taught.evaluations("colours") if s.evaluation.metric == "accuracy").evaluation
    assert set(best.details["classes"]) == set(COLOURS)
    assert len(best.details["confusion"]) == 3
    scored = {e.metric: e.value for ref, e in taught.evaluate(["colours"])}
    assert scored["accuracy"] == record.metrics["accuracy"]
    assert json.loads((record.path / "training.json").read_text())["objective"] == "sequence_classification"
    assert json.loads((record.path / "heads.json").read_text())["rows"] == {
        "colours": {"blue": 0, "green": 1, "red": 2}
    }
    assert taught.verify() == []
    assert len((record.path / "replay.jsonl").read_text().splitlines()) == 12


def test_plain_peft_gives_the_same_logits(taught: AdapterHub) -> None:
    config = json.loads((taught.path("colours") / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["classifier"])
    ours = [p.scores for p in taught.predict(TEXTS, task="colours")]
    plain = logits_of(taught, "colours", 3, **CUT)
    for row, scores in zip(plain.softmax(-1), ours, strict=True):
        torch.testing.assert_close(row, torch.tensor(list(scores.values())), atol=1e-5, rtol=0)
    model, tokenizer = taught.load("colours")
    with torch.no_grad():
        loaded = model(**tokenizer(TEXTS, return_tensors="pt", padding=True, **CUT)).logits
    torch.testing.assert_close(loaded, plain, atol=1e-5, rtol=0)
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "bert_body"])
def test_other_encoders_keep_what_their_checkpoint_lacks(
    pico_path: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    hub = new_hub(tmp_path / "hub", pico_path(kind))
    record = teach(hub, tmp_path, "colours", COLOURS, epochs=2)
    ours = torch.tensor([list(p.scores.values()) for p in hub.predict(TEXTS, task="colours")])
    torch.testing.assert_close(logits_of(hub, "colours", 3, **CUT).softmax(-1), ours, atol=1e-5, rtol=0)
    neck = {key for key in load_file(record.path / "adapter_model.safetensors") if ".lora_" not in key}
    assert any("pooler" in key or "dense" in key or "pre_classifier" in key for key in neck)


def test_the_base_is_left_as_it_was(taught: AdapterHub) -> None:
    before = {key: value.clone() for key, value in taught.load_base().model.state_dict().items()}
    taught.predict(TEXTS, task="colours")
    taught.predict(TEXTS, task="animals")
    after = taught.load_base().model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_an_adapter_without_a_head_for_a_task_says_so(taught: AdapterHub) -> None:
    with pytest.raises(AdapterError, match="no head for the task animals: this adapter answers colours"):
        taught.predict(TEXTS, task="animals", adapter="colours")
    with pytest.raises(AdapterError, match="no head for the task colours: the base has none"):
        taught.predict(TEXTS, task="colours", adapter="base")


def test_a_killed_run_goes_on_to_the_very_same_head(
    pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl.training.loop import Loop

    straight = new_hub(tmp_path / "straight", pico_path("bert_body"))
    whole = teach(straight, tmp_path, "colours", COLOURS, dropout=0.2)
    hub = new_hub(tmp_path / "broken", pico_path("bert_body"))
    step = Loop.one_step

    def stopping(self: Loop, fresh: Any) -> float:
        if self.at.steps == 14:
            raise KeyboardInterrupt
        return step(self, fresh)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "one_step", stopping)
        with pytest.raises(TrainingInterrupted):
            teach(hub, tmp_path, "colours", COLOURS, dropout=0.2)
    resumed = hub.add_task("colours", resume=True)
    one, other = (load_file(r.path / "adapter_model.safetensors") for r in (whole, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_exported_is_imported_again(taught: AdapterHub, tmp_path: Path) -> None:
    taught.export("colours", tmp_path / "out")
    assert (tmp_path / "out" / "heads.json").is_file()
    alone = taught.import_adapter(tmp_path / "out", "alone")
    assert taught.registry.task("alone").labels == taught.registry.task("colours").labels, "as heads.json has them"
    assert taught.predict(["blue stone"], adapter=alone.ref, task="alone")[0].prediction in COLOURS
    with pytest.raises(UsageError, match=r"heads\.json\), but the task's labels are red, blue, green, grey"):
        taught.import_adapter(tmp_path / "out", "more", labels=[*COLOURS, "grey"])
    record = taught.import_adapter(tmp_path / "out", "back", task="colours")
    ours = [p.scores for p in taught.predict(TEXTS, adapter=record.ref)]
    assert ours == [p.scores for p in taught.predict(TEXTS, adapter="colours")]


def test_what_plain_peft_trained_is_taken_in_with_its_labels(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert_body"))
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_pretrained(pico_path("bert_body"), num_labels=2)
    config = LoraConfig(r=4, target_modules=["query", "dense"], task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(plain, config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UsageError, match="its head has 2 rows, but the task has 3 labels"):
        hub.import_adapter(tmp_path / "theirs", "animals", labels=["cat", "dog", "cow"])
    with pytest.raises(UsageError, match="the labels of the rows") as caught:
        hub.import_adapter(tmp_path / "theirs", "animals")
    assert "--labels" in caught.value.hint
    record = hub.import_adapter(tmp_path / "theirs", "animals", labels=ANIMALS)
    ours = torch.tensor([list(p.scores.values()) for p in hub.predict(TEXTS, adapter=record.ref)])
    torch.testing.assert_close(logits_of(hub, record.ref, 2).softmax(-1), ours, atol=1e-5, rtol=0)


def test_adapters_of_the_other_kind_of_base_are_refused(
    taught: AdapterHub, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    causal = AdapterHub.init(tmp_path / "causal", base=str(pico_path("llama")), quantization="none", dtype="fp32")
    with pytest.raises(AdapterError, match="is for SEQ_CLS, but this base is a causal language model"):
        causal.import_adapter(taught.path("colours"), "colours", labels=COLOURS)
    own = causal.add_task("animals", data(tmp_path, ANIMALS, 8), **{**QUICK, "epochs": 1})
    with pytest.raises(AdapterError, match="is for CAUSAL_LM, but this base is an encoder"):
        taught.import_adapter(own.path, "llamas", labels=ANIMALS)


def test_a_layout_that_does_not_fit_is_refused(taught: AdapterHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    taught.export("colours", out)
    (out / "heads.json").write_text('{"layer": "classifier", "rows": {"colours": {"blue": 0, "green": 7}}}')
    with pytest.raises(IntegrityError, match="does not match the adapter's head of 3 rows"):
        taught.import_adapter(out, "spoilt", task="colours")


def test_the_card_loads_the_adapter(taught: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    record = taught.get("colours")
    code = (record.path / "README.md").read_text().split("```python")[1].split("```")[0]
    assert "AutoModelForSequenceClassification" in code
    assert "num_labels=3" in code
    monkeypatch.chdir(record.path)
    space: dict[str, Any] = {}
    exec(code, space)
    assert space["model"].config.id2label == {0: "blue", 1: "green", 2: "red"}


def test_an_instruction_of_its_own_is_read_with_the_input(taught: AdapterHub) -> None:
    from adapterhub_cl.data.labelled import LabelledTokeniser

    tokenizer = taught.load_base().tokenizer
    task = taught.registry.task("colours")
    encode = LabelledTokeniser(tokenizer, task, 20)
    row = rows(COLOURS, 1)[0]
    bare = encode(types.Example(row["input"], row["output"], row["instruction"]))
    assert bare.prompt == tuple(tokenizer(row["input"]).input_ids)[:20]
    assert bare.answer == (2,)
    asked = encode(types.Example("red", "red", "Is it?"))
    assert asked.prompt == tuple(tokenizer("Is it?", "red").input_ids)
    long = encode(types.Example("word " * 60, "red", "Is it?"))
    assert long.truncated
    assert len(long) == 20
    assert long.prompt[: len(tokenizer("Is it?").input_ids)] == tuple(tokenizer("Is it?").input_ids)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"colours": {"red": 0.5, "blue": 1}}, "not a whole number"),
        ({"colours": {"red": True, "blue": 1}}, "not a whole number"),
        ([["red", 0]], "does not say which row is which label"),
        ({"colours": None}, "does not say which row is which label"),
    ],
)
def test_rows_that_mean_nothing_are_refused(rows: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text(json.dumps({"layer": "classifier", "rows": rows}))
    with pytest.raises(IntegrityError, match=said):
        read_layout(tmp_path)
