"""Preferences from the file to the stored version: a fresh adapter, an update of a task of free answers, the gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_adapter.__main__ import main
from encoder_hubs import Notes
from toys import PAD, stir

from adapterhub_cl import AdapterHub
from adapterhub_cl.adapters.fused import base_alone, fused
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.preference_tokens import PreferenceTokens
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.evaluation.preference_scores import preference_score
from adapterhub_cl.learning.chosen_settings import write_choice
from adapterhub_cl.objectives import causal_lm, dpo, kto
from adapterhub_cl.progress import LineReporter
from adapterhub_cl.samples.kept import kept_samples
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import Example, Task

COLOURS = ("red", "blue", "green", "grey")
THINGS = ("apple", "stone", "leaf", "door", "shoe", "car")
QUICK: dict[str, Any] = {"epochs": 3, "rank": 4, "batch_size": 4, "max_length": 64, "learning_rate": 0.01}


def pairs() -> list[dict[str, Any]]:
    """The colour that is wanted of each thing is red, whatever the other answer is."""
    rows = [(thing, other) for thing in THINGS for other in COLOURS[1:]]
    return [{"prompt": f"the {thing} is", "chosen": "red", "rejected": other} for thing, other in rows]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def hub(pico_path: Callable[[str], Path], tmp_path: Path) -> AdapterHub:
    return AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")


def test_pairs_make_a_task_that_is_measured_by_its_rewards(hub: AdapterHub, tmp_path: Path) -> None:
    data, held = write(tmp_path / "train.jsonl", pairs()[:15]), write(tmp_path / "test.jsonl", pairs()[15:])
    record = hub.add_task("colours", data, eval=held, **QUICK)
    assert record.metrics == {"reward_accuracy": 1.0}
    facts = json.loads((record.path / "training.json").read_text())
    assert (facts["objective"], facts["settings"]["beta"]) == ("dpo", 0.1)
    assert facts["history"][-1]["loss"] < 0.6
    assert {(e.answer, bool(e.rejected)) for e in kept_samples(record)} == {("red", True)}
    [again] = hub.evaluate(["colours"])
    assert (again[1].metric, again[1].value) == ("reward_accuracy", 1.0)
    twisted = [{**row, "chosen": row["rejected"], "rejected": "red"} for row in pairs()[15:]]
    [other] = hub.evaluate(["colours"], data=write(tmp_path / "twisted.jsonl", twisted))
    assert other[1].value == 0.0


def test_an_update_keeps_the_task_s_own_score_and_gate(
    hub: AdapterHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [{"prompt": f"the {thing} is", "completion": COLOURS[k % 4]} for k, thing in enumerate(THINGS)]
    taught, test = write(tmp_path / "plain.jsonl", plain[:4] * 3), write(tmp_path / "plain-test.jsonl", plain[4:])
    first = hub.add_task("colours", taught, eval=test, metric="token_f1", **{**QUICK, "epochs": 1})
    held = write(tmp_path / "pairs-test.jsonl", [{**row, "prompt": "a " + row["prompt"]} for row in pairs()[15:]])
    data = write(tmp_path / "pairs.jsonl", [{**row, "prompt": "a " + row["prompt"]} for row in pairs()[:15]])
    rates: dict[str, Any] = {"epochs": 4, "batch_size": 4, "learning_rate": 0.02}
    second = hub.update("colours", data, eval=held, max_forgetting=1.0, **rates)
    assert {task.name: task.metric for task in hub.registry.tasks()} == {"colours": "token_f1"}
    assert second.metrics["reward_accuracy"] > 0.5
    assert next(iter(second.metrics)) == "token_f1", "the one that stands for the task"
    assert main(["--hub", str(hub.folder), "list"]) == 0
    listed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(second.ref))
    assert "token_f1" in listed
    assert "reward_accuracy" not in listed
    [effect] = second.manifest["gate"]["effects"]
    assert (effect["metric"], effect["data"], effect["answered_by"]) == ("token_f1", test, first.ref)
    assert second.manifest["lineage"] == [{"parent": first.ref, "relation": "updated_from"}]
    assert {bool(e.rejected) for e in kept_samples(second)} == {True, False}


def test_judged_answers(hub: AdapterHub, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}
        for row in pairs()
        for good in (True, False)
    ]
    data, held = write(tmp_path / "train.jsonl", rows[:32]), write(tmp_path / "test.jsonl", rows[32:])
    record = hub.add_task("colours", data, eval=held, **QUICK)
    assert json.loads((record.path / "training.json").read_text())["objective"] == "kto"
    assert record.metrics["reward_accuracy"] > 0.9
    assert {e.desirable for e in kept_samples(record)} == {True, False}
    again = hub.update(
        "colours", write(tmp_path / "pairs.jsonl", pairs()[:8]), epochs=1
    )  # old judged rows beside pairs
    assert json.loads((again.path / "training.json").read_text())["objective"] == "dpo"
    plain = [{"prompt": f"a {thing} is", "completion": "red"} for thing in THINGS]
    later = hub.update("colours", write(tmp_path / "plain.jsonl", plain), epochs=1, max_forgetting=1.0)
    facts = json.loads((later.path / "training.json").read_text())
    assert facts["objective"] == "causal_lm"
    liked = sum(e.desirable is not False for e in kept_samples(again))
    assert facts["trained_on"] + facts["dev_examples"] == len(plain) + liked, "what was rejected is not learned"
    one_sided = write(tmp_path / "liked.jsonl", [row for row in rows if row["label"]])
    with pytest.raises(DataError, match="judged alike"):
        hub.add_task("liked", data, eval=one_sided, **QUICK)
    told = Notes()
    hub.add_task("liked", one_sided, dry_run=True, reporter=told, **QUICK)
    assert "warning: every answer is liked, so nothing tells good answers from bad ones" in told.said


@pytest.mark.parametrize("form", ["pairs", "judged"])
def test_preferences_that_contradict_each_other_are_told(hub: AdapterHub, tmp_path: Path, form: str) -> None:
    rows = pairs()[:6]
    if form == "pairs":
        rows = [*rows, {"prompt": rows[0]["prompt"], "chosen": rows[0]["rejected"], "rejected": "red"}]
        told = "warning: 2 rows prefer what another row rejects, for the same question"
    else:
        rows = [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in rows]
        rows = [*rows, {**rows[0], "label": True}]
        told = "warning: 1 row prefers what another row rejects, for the same question"
    notes = Notes()
    hub.add_task("colours", write(tmp_path / "train.jsonl", rows), dry_run=True, reporter=notes, **QUICK)
    assert told in notes.said
    hub.add_task(
        "colours", write(tmp_path / "fine.jsonl", pairs()[:6]), dry_run=True, reporter=(fine := Notes()), **QUICK
    )
    assert not any("another row rejects" in note for note in fine.said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"facts": True}, "--facts"),
        ({"augment": "swap:1"}, "--augment"),
        ({"prompt_loss": 0.5}, "--prompt-loss"),
        ({"kind": "choice"}, "--kind choice"),
        ({"strategy": "sdft"}, "--strategy sdft"),
        ({"beta": 0.0}, "--beta must be above 0"),
        ({"desirable_weight": -1.0}, "--desirable-weight"),
        ({"desirable_weight": 0.0, "undesirable_weight": 0.0}, "cannot both be 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    hub: AdapterHub, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises((UsageError, DataError), match=said):
        hub.add_task("colours", write(tmp_path / "train.jsonl", pairs()), **{**QUICK, **options})
    assert not hub.list()


def test_what_tune_chose_for_answers_is_not_used_for_preferences(hub: AdapterHub, tmp_path: Path) -> None:
    write_choice(hub.registry, "colours", {"settings": {"rank": 2, "learning_rate": 0.25, "epochs": 7}, "trials": []})
    small: dict[str, Any] = {"batch_size": 4, "max_length": 64, "max_forgetting": 1.0}
    plain = write(tmp_path / "plain.jsonl", [{"prompt": f"the {t} is", "completion": "red"} for t in THINGS])
    preferred = write(tmp_path / "pairs.jsonl", pairs()[:6])

    def trained(record: Any) -> tuple[float, int, int]:
        facts = json.loads((record.path / "training.json").read_text())
        return facts["learning_rate"], facts["settings"]["epochs"], record.rank

    usual = trained(hub.add_task("other", preferred, **small))[0]
    assert trained(hub.add_task("colours", plain, **small)) == (0.25, 7, 2)
    assert trained(hub.update("colours", plain, **small)) == (0.25, 3, 2), "an update passes over its rows as usual"
    said = StringIO()
    assert trained(hub.update("colours", preferred, reporter=LineReporter(said), **small)) == (usual, 3, 2)
    assert "not used here (learning rate 0.25, epochs 7): it was chosen for answers" in said.getvalue()
    assert trained(hub.add_task("colours", preferred, **small)) == (usual, 3, 2), "the rank is tuned still"
    assert trained(hub.update("colours", preferred, learning_rate=0.25, epochs=1, **small)) == (0.25, 1, 2)


def test_preferences_are_not_tuned(hub: AdapterHub, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(UsageError, match="tune searches settings for answers"):
        hub.tune("colours", write(tmp_path / "pairs.jsonl", pairs() * 6))


PAIR = PreferenceTokens((1, 20, 21), (30, 31, 2), other=(40, 2))
JUDGED = [
    PreferenceTokens((1, 20), (30, 2), other=(31, 2), desirable=True),
    PreferenceTokens((1, 21), (31, 2), other=(30, 2), desirable=False),
]
PLAIN = Tokens((1, 50), (51, 52, 2))


def test_untrained_rows_lose_what_chance_does_and_weigh_as_one(pico_base: Any) -> None:
    plain = causal_lm.Objective()
    with new_adapter(pico_base, TrainingSettings(rank=2), "CAUSAL_LM") as model:
        own = plain.losses(model, collate([PLAIN], [0], PAD)).mean().item()
        pairs, judged = dpo.Objective(), kto.Objective(TrainingSettings(desirable_weight=2.0))
        rows = pairs.referred(model, [PAIR, PLAIN, PAIR], PAD, 2)
        batch = collate(rows, range(3), PAD)
        assert pairs.losses(model, batch).tolist() == pytest.approx([0.693147, own, 0.693147], abs=1e-5)
        assert (batch.input_ids.shape[0], pairs.counted(rows, range(3))) == (5, 3)
        weighted = collate(rows, range(3), PAD, row_weights=[1.0, 0.5, 2.0])
        assert pairs.losses(model, weighted).tolist() == pytest.approx([0.693147, own / 2, 1.386294], abs=1e-5)
        given = pairs.losses_given(pairs.logits(model, batch), batch, model)
        assert torch.allclose(given, pairs.losses(model, batch))
        rows = judged.referred(model, [*JUDGED, PLAIN], PAD, 2)
        assert [row.other for row in rows[:2]] == [JUDGED[1].answer, JUDGED[0].answer]  # type: ignore[attr-defined]
        assert judged.losses(model, collate(rows, range(3), PAD)).tolist() == pytest.approx([1.0, 0.5, own], abs=1e-5)


def test_no_answer_to_another_question_makes_a_row_longer_than_the_longest() -> None:
    rows = [
        PreferenceTokens(tuple(range(10, 70)), (5, 2), other=(5, 2), desirable=True),
        PreferenceTokens((10,), tuple(range(30, 60)), other=(5, 2), desirable=False),
    ]
    paired = kto.Objective().paired(rows)
    assert max(map(len, paired)) == max(len(row.with_answer) for row in rows) == 62
    assert [row.other for row in paired] == [(30, 31), (5, 2)]
    assert kto.Objective().paired([]) == []


def test_an_answer_is_compared_with_those_to_other_questions() -> None:
    """A pair's two rows ask the same question, and so may neighbours."""

    def others(*asked: int) -> list[tuple[int, ...]]:
        rows = [PreferenceTokens((q,), (k,), desirable=k % 2 == 0) for k, q in enumerate(asked)]
        return [row.other for row in kto.Objective().paired(rows)]  # type: ignore[attr-defined]

    assert others(7, 8, 9) == [(1,), (2,), (0,)]
    assert others(7, 7, 8, 8, 9, 9) == [(2,), (3,), (4,), (5,), (0,), (1,)]
    assert others(7, 8, 8, 7) == [(2,), (3,), (0,), (1,)]
    assert others(7, 7, 7) == [(1,), (2,), (0,)], "there is no other question"
    assert others(7, 7) == [(1,), (0,)]
    assert others(7) == [(0,)]


def test_judged_answers_that_fill_the_context_are_learned(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    """GPT-2 has one learned position for each token that it reads: a longer sequence ends in an error."""
    hub = AdapterHub.init(tmp_path / "hub", str(pico_path("gpt2")), quantization="none", dtype="fp32")
    rows = [{"prompt": " ".join(["apple"] * (200 if k % 2 else 3)) + f" {k}", "label": k % 3 > 0} for k in range(8)]
    for k, row in enumerate(rows):
        row["completion"] = "the red apple is good" if k % 2 else " ".join(["stone"] * 100)
    record = hub.add_task("long", write(tmp_path / "long.jsonl", rows), **{**QUICK, "epochs": 1, "max_length": 256})
    assert json.loads((record.path / "training.json").read_text())["objective"] == "kto"


def test_the_reference_is_the_adapter_as_it_was_or_the_base(pico_base: Any) -> None:
    with new_adapter(pico_base, TrainingSettings(rank=2), "CAUSAL_LM") as model:
        objective = dpo.Objective()
        [fresh] = objective.referred(model, [PAIR], PAD, 2)
        stir(model)
        [parent] = objective.referred(model, [PAIR], PAD, 2)
        with base_alone(model):
            [alone] = objective.referred(model, [PAIR], PAD, 2)
        with fused(model, torch.float32), base_alone(model):
            [quick] = objective.referred(model, [PAIR], PAD, 2)
        assert fresh.reference == alone.reference == quick.reference != parent.reference  # type: ignore[attr-defined]
        assert objective.losses(model, collate([parent], [0], PAD)).item() == pytest.approx(0.693147, abs=1e-5)
        examples = [Example("the apple is", "red", rejected="blue")]
        told = {"data": "x", "max_length": 64, "dtype": torch.float32}
        task = Task("t", metric="reward_accuracy")
        found = preference_score(model, pico_base.tokenizer, causal_lm.Objective(), task, examples, **told)  # type: ignore[arg-type]
        assert found.details["margin"] != 0
    base = preference_score(pico_base.model, pico_base.tokenizer, causal_lm.Objective(), task, examples, **told)  # type: ignore[arg-type]
    assert base.value == 0.0
