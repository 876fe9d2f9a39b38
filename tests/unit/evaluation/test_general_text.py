"""What a version does to the base's loss on text that no task owns: the figure, its interval, and the gate's answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import new_hub
from toys import toy_settings

from adapterhub_cl import AdapterHub, objectives
from adapterhub_cl.adapters.lora import new_adapter, trainable
from adapterhub_cl.errors import DataError, GateRefused, HubError, UsageError
from adapterhub_cl.evaluation import general_text as room
from adapterhub_cl.evaluation.base_effect import BaseEffect, compared
from adapterhub_cl.evaluation.gate import decide, general_of, refusal_of
from adapterhub_cl.evaluation.general_options import GeneralOptions
from adapterhub_cl.evaluation.general_text import GeneralText, base_limit, general_text
from adapterhub_cl.evaluation.retention import Retained
from adapterhub_cl.types import Task

ROWS = [
    {"text": f"{word} number {k}", "label": label} for k in range(6) for word, label in (("sun", "a"), ("sea", "b"))
]


def effect(rise: float, limit: float | None, sure: bool = True) -> BaseEffect:
    ends = (rise - 0.01, rise + 0.01) if sure else (rise - 2.0, rise + 2.0)
    return BaseEffect("the built-in sample", "0" * 64, 3, 60, 2.0, 2.0 + rise, ends, limit)


@pytest.fixture
def hub(pico_path: Callable[[str], Path], tmp_path: Path) -> AdapterHub:
    return AdapterHub.init(tmp_path / "hub", pico_path("llama"), quantization="none", dtype="fp32", device="cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_the_rise_and_its_interval_by_hand() -> None:
    before, after = [(10.0, 10), (20.0, 10)], [(12.0, 10), (26.0, 10)]
    rise, low, high = compared(before, after)
    assert rise == pytest.approx(8 / 20)
    # differences 2 and 6 around 4: variance 8; the total varies by sqrt(2 * 8) = 4 nats in 20 tokens
    assert (low, high) == pytest.approx((0.4 - 1.96 * 4 / 20, 0.4 + 1.96 * 4 / 20), abs=1e-4)
    assert compared([(3.0, 3)], [(4.0, 3)])[1:] == (-math.inf, math.inf), "one passage proves nothing"
    assert compared(before, before) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("rise", "limit", "sure", "passed"),
    [(0.5, None, True, True), (0.5, 0.1, True, False), (0.5, 0.1, False, True), (0.05, 0.1, True, True)],
)
def test_a_rise_must_be_over_the_limit_and_over_chance(
    rise: float, limit: float | None, sure: bool, passed: bool
) -> None:
    general = effect(rise, limit, sure)
    for decision in (decide([], 0.02, general), Retained(None, (), general)):
        assert decision.passed is passed
        stored = json.loads(json.dumps(decision.to_json()))
        assert stored["passed"] is passed
        assert general_of(stored).to_json() == general.to_json()  # type: ignore[union-attr]
        if not passed:
            assert "its loss on general text rises by more than 0.1: 2.000 → 2.500" in decision.message("x@v1")


def test_a_refusal_goes_through_the_log() -> None:
    decision = decide([], 0.02, effect(0.5, 0.1))
    assert refusal_of(json.loads(json.dumps(decision.to_log()))).message("x@v1") == decision.message("x@v1")


@pytest.mark.parametrize("row", [None, 3, [], {}, {"before": 1}, {"interval": [1]}, {"interval": "ab"}])
def test_a_damaged_measurement_is_no_measurement(row: Any) -> None:
    assert general_of({"general": row}) is None


def test_it_is_the_difference_of_two_losses_of_the_model_itself(hub: AdapterHub, tmp_path: Path) -> None:
    """Against the loss that transformers computes for each passage."""
    context = hub.context()
    text = GeneralText("", None)
    text.begin(context)
    base = context.base
    encode = objectives.of(base.info).tokeniser(base.tokenizer, Task("general", "text"), 256)

    def plain(model: Any) -> float:
        total, count = 0.0, 0
        for passage in text.passages:
            (window,) = encode.windows(passage)
            ids = torch.tensor([window.ids])
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return total / count

    with torch.no_grad():
        bare = plain(base.model)
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        model.eval()
        assert text.effect(context, model).rise == pytest.approx(0.0, abs=1e-6), "a fresh adapter changes nothing"
        with torch.no_grad():
            for name, p in trainable(model).items():
                if "lora_B" in name:
                    p.normal_(std=0.5)
            found = text.effect(context, model)
            assert found.after == pytest.approx(plain(model), rel=1e-4)
    assert found.before == pytest.approx(bare, rel=1e-4)
    assert found.passages == 3


def test_every_gate_reports_it(hub: AdapterHub, data: Path) -> None:
    first = hub.add_task("sky", data, epochs=1)
    second = hub.add_task("water", data, epochs=1)
    updated = hub.update("sky", data, epochs=1)
    merged = hub.merge(["sky", "water"], name="both")
    pruned = hub.prune("water", rank=1)
    for record in (first, second, updated, merged, pruned):
        found = general_of(record.manifest["gate"])
        assert found is not None, record.ref
        assert (found.data, found.passages, found.limit) == ("the built-in sample", 3, None)
    _, decision = hub.promote(merged.ref, max_forgetting=1)
    assert decision.general == general_of(merged.manifest["gate"])


def test_a_limit_refuses_and_promote_lets_pass(
    hub: AdapterHub, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "compared", lambda *_: (0.5, 0.4, 0.6))  # a random base has nothing to forget
    text = tmp_path / "own.txt"
    text.write_text("A ship.\n\nA long way home.\n", encoding="utf-8")
    with pytest.raises(GateRefused, match="its loss on general text rises by more than 0:") as caught:
        hub.add_task("sky", data, epochs=1, general=text, max_base_forgetting=0)
    record = caught.value.record
    assert record is not None
    assert record.status == "rejected"
    assert "--max-base-forgetting" in caught.value.hint
    with pytest.raises(GateRefused, match="general text"):
        hub.promote(record.ref, max_base_forgetting=0)
    promoted, decision = hub.promote(record.ref)
    assert promoted.state(1) == "serves"
    assert decision.general is not None
    assert decision.general.data == str(text)


def test_it_can_be_left_out_and_bad_values_are_refused_before_training(
    hub: AdapterHub, data: Path, tmp_path: Path
) -> None:
    record = hub.add_task("sky", data, epochs=1, general="none")
    one = tmp_path / "one.txt"
    one.write_text("A single passage.\n", encoding="utf-8")
    assert "general" not in record.manifest["gate"]
    for wrong, error in (
        ({"general": "none", "max_base_forgetting": 1.0}, UsageError),
        ({"max_base_forgetting": -1.0}, UsageError),
        ({"max_base_forgetting": math.nan}, UsageError),
        ({"general": str(data)}, DataError),
        ({"general": str(one)}, DataError),
        ({"general": str(tmp_path / "nowhere.txt")}, DataError),
    ):
        for call in (hub.add_task, hub.update):
            with pytest.raises(error):
                call("sky", data, **wrong)
        with pytest.raises(error):
            hub.merge(["sky", "sky"], name="x", **wrong)
    assert [r.ref for r in hub.list(all_versions=True)] == ["sky@v1"]
    assert not list(hub.registry.runs_dir.iterdir()) if hub.registry.runs_dir.exists() else True


def test_the_hub_has_defaults(hub: AdapterHub, tmp_path: Path) -> None:
    registry = hub.registry
    file = tmp_path / "hub" / "hub.toml"
    written = file.read_text(encoding="utf-8")
    file.write_text(written.replace("max_forgetting = 0.02", "max_base_forgetting = 0.25"), encoding="utf-8")
    again = AdapterHub.open(tmp_path / "hub").registry
    assert (base_limit(again, None), base_limit(again, 0.5)) == (0.25, 0.5)
    file.write_text(written.replace("max_forgetting = 0.02", 'max_base_forgetting = "x"'), encoding="utf-8")
    with pytest.raises(HubError, match="max_base_forgetting is 'x'"):
        base_limit(AdapterHub.open(tmp_path / "hub").registry, None)
    assert base_limit(registry, None) is None


def test_a_long_text_is_read_evenly(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": f"passage {k}"}) + "\n" for k in range(1000)), encoding="utf-8")
    text = GeneralText(str(path), None)
    numbers = [int((p.input or str(p.answer)).split()[1]) for p in text.passages]
    assert numbers == list(range(0, 1000, 10))


def test_a_text_without_blank_lines_is_read_by_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("One line.\nAnother line.\n", encoding="utf-8")
    assert [p.answer for p in GeneralText(str(path), None).passages] == ["One line.", "Another line."]
    path.write_text("One line.\n", encoding="utf-8")
    with pytest.raises(DataError, match="is a single passage") as told:
        GeneralText(str(path), None)
    assert "blank lines" in told.value.hint


def test_the_real_sample_is_raw_text_of_many_kinds() -> None:
    found = room.read_examples(Path(room.__file__).with_name("general.txt"))
    assert found.layout == "raw text"
    assert len(found.examples) == 24


def test_an_encoder_without_a_language_model_is_not_measured(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    registry = new_hub(tmp_path / "body", pico_path("bert_body")).registry
    assert general_text(registry, GeneralOptions()) is None
    with pytest.raises(UsageError, match="no language model"):
        general_text(registry, GeneralOptions(max_base_forgetting=0.1))
    masked = new_hub(tmp_path / "masked", pico_path("bert"))
    text = general_text(masked.registry, GeneralOptions())
    assert text is not None
    text.begin(masked.context())
