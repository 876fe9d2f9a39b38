"""Raw text on encoders with the head of a masked language model: task loss and the distillation from before."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import ANIMALS, QUICK, new_hub, teach
from peft import PeftModel
from toys import toy_settings
from transformers import AutoModelForMaskedLM

from adapterhub_cl import AdapterHub, objectives
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.labelled import LabelledTokeniser
from adapterhub_cl.data.masked import TURNS, MaskedTokeniser
from adapterhub_cl.errors import UsageError
from adapterhub_cl.types import Example, Task

TEXT = Task("facts", "text", metric="perplexity")
FACTS = ["The red river runs past the old stone house every day.", "A blue cloud sits on the table of the green king."]


def facts(folder: Path, copies: int = 1) -> Path:
    path = folder / "facts.txt"
    path.write_text("".join(line + "\n" for line in FACTS * copies))
    return path


@pytest.mark.parametrize("length", [12, 64])
def test_together_the_rows_of_a_text_hide_each_id_once(load_pico: Callable[..., Any], length: int) -> None:
    tokenizer = load_pico("bert").tokenizer
    found = MaskedTokeniser(tokenizer, TEXT, length).windows(Example("", FACTS[0]))
    whole = tokenizer(FACTS[0], add_special_tokens=False).input_ids
    answers = [token for row in found for token in row.answer]
    assert sorted(answers) == sorted(whole)
    assert len(found) == TURNS * math.ceil(len(whole) / (length - 2)) or length == 12
    for row in found:
        assert len(row) <= length
        assert [row.prompt[k] for k in row.hidden] == [tokenizer.mask_token_id] * len(row.answer)
        assert row.prompt.count(tokenizer.mask_token_id) == len(row.answer)
    assert found == MaskedTokeniser(tokenizer, TEXT, length).windows(Example("", FACTS[0]))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_hidden_ids_get_transformers_own_loss(
    load_pico: Callable[..., Any], pico_path: Callable[[str], Path], kind: str
) -> None:
    base = load_pico(kind)
    objective = objectives.of(base.info)
    tokens = MaskedTokeniser(base.tokenizer, TEXT, 60).windows(Example("", FACTS[0]))
    batch = collate(tokens, range(len(tokens)), 0)
    plain = AutoModelForMaskedLM.from_pretrained(pico_path(kind), dtype=torch.float32).eval()
    with torch.no_grad():
        losses = objective.losses(base.model, batch)
        logits = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    wanted = [
        -logits[k, at].log_softmax(-1)[t]
        for k, row in enumerate(tokens)
        for at, t in zip(row.hidden, row.answer, strict=True)
    ]
    torch.testing.assert_close(losses, torch.stack(wanted), atol=1e-4, rtol=1e-4)


def test_text_and_labels_stand_in_one_batch(load_pico: Callable[..., Any]) -> None:
    base = load_pico("bert")
    objective = objectives.of(base.info)
    task = Task("animals", "choice", labels=ANIMALS)
    text = MaskedTokeniser(base.tokenizer, TEXT, 60).windows(Example("", FACTS[1]))[:2]
    label = LabelledTokeniser(base.tokenizer, task, 60)(Example("dog table", "dog"))
    tokens = [text[0], label, text[1]]
    with new_adapter(base, toy_settings(), "SEQ_CLS", tasks=[task]) as model, torch.no_grad():
        mixed = objective.losses(model, collate(tokens, [0, 1, 2], 0))
        apart = [objective.losses(model, collate([one], [0], 0)) for one in tokens]
    torch.testing.assert_close(mixed, torch.cat(apart), atol=1e-4, rtol=1e-4)


def test_an_encoder_learns_text(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert"))
    file = facts(tmp_path)
    record = hub.add_task("facts", file, eval=file, **{**QUICK, "epochs": 8})
    told = json.loads((record.path / "training.json").read_text())
    assert told["objective"] == "masked_lm"
    assert not (record.path / "heads.json").exists()
    before = told["history"][0]["loss"]
    assert math.log(record.metrics["perplexity"]) < before - 0.3
    plain = AutoModelForMaskedLM.from_pretrained(pico_path("bert"), dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(hub.path("facts"))).eval()
    tokens = [
        t for line in FACTS for t in MaskedTokeniser(hub.load_base().tokenizer, TEXT, 32).windows(Example("", line))
    ]
    batch = collate(tokens, range(len(tokens)), 0)
    rows, columns = batch.places
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[rows, columns]
    loss = torch.nn.functional.cross_entropy(logits, batch.labels[rows, columns + 1])
    assert math.exp(float(loss)) == pytest.approx(record.metrics["perplexity"], rel=0.01)
    with pytest.raises(UsageError, match="an encoder answers choice tasks"):
        hub.predict(["The red river"], task="facts")


def test_an_update_with_raw_text_keeps_the_labels_and_is_held_to_the_model_before(
    pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert"))
    teach(hub, tmp_path, "animals", ANIMALS)
    record = hub.update("animals", facts(tmp_path), **{**QUICK, "epochs": 2}, max_forgetting=1.0)
    told = json.loads((record.path / "training.json").read_text())
    assert (told["strategy"], told["objective"]) == ("lwf", "masked_lm")
    assert json.loads((record.path / "heads.json").read_text())["rows"] == {"animals": {"cat": 0, "dog": 1}}
    named = {row["metric"]: row["value"] for row in record.manifest["evaluations"]}
    assert {"recall", "retention"} <= named.keys()
    assert hub.predict(["dog table house 5"], task="animals")[0].prediction in ANIMALS


def test_alpha_weighs_the_model_before(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert"))
    teach(hub, tmp_path, "animals", ANIMALS, epochs=2)
    gained = {}
    for alpha in (0.0, 20.0):
        shutil.copytree(hub.folder, tmp_path / str(alpha))
        own = AdapterHub.open(tmp_path / str(alpha), dtype="fp32")
        record = own.update(
            "animals", facts(tmp_path), options={"lwf.alpha": alpha}, strategy="lwf", max_forgetting=1.0, **QUICK
        )
        gained[alpha] = next(row["value"] for row in record.manifest["evaluations"] if row["metric"] == "recall")
    assert gained[0.0] > 1.2 * gained[20.0]
