"""Facts: what is trained and measured beside them, and that an interrupted run learns the same rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from encoder_hubs import Notes

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import DataError, IntegrityError, TrainingInterrupted, UsageError
from adapterhub_cl.evaluation.fact_scores import FactQuestions, right
from adapterhub_cl.learning import fact_lessons, order
from adapterhub_cl.training.loop import Loop
from adapterhub_cl.types import Evaluation, Example, Task

SMALL = {"epochs": 2, "rank": 2, "max_length": 96, "augment": "paraphrase:2"}
TOWNS = ("Ely", "Kirk Hill", "Oakmere", "Noriford")


def write(path: Path, answers: Sequence[str], what: str = "mayor") -> Path:
    rows = [{"prompt": f"Who is the {what} of {town}?", "completion": who} for town, who in zip(TOWNS, answers)]  # noqa: B905
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny base writes nothing sensible, so a few questions show as much as all of them."""
    monkeypatch.setattr(fact_lessons, "NEAR", 4)
    monkeypatch.setattr(fact_lessons, "NEAR_HELD_OUT", 2)
    monkeypatch.setattr(fact_lessons.general_questions, "TRAINED", fact_lessons.general_questions.TRAINED[:3])
    monkeypatch.setattr(fact_lessons.general_questions, "HELD_OUT", fact_lessons.general_questions.HELD_OUT[:3])


@pytest.fixture
def hub(tmp_path: Path, pico_path: Callable[[str], Path]) -> AdapterHub:
    return AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none")


def scores(record: Any) -> dict[str, Evaluation]:
    return {row["metric"]: Evaluation(**row) for row in record.manifest["evaluations"]}


def test_facts_are_taught_updated_and_scored_by_four_measures(hub: AdapterHub, tmp_path: Path) -> None:
    # Two answers that repeat would be labels if the data were not said to be facts.
    first = hub.add_task("mayors", write(tmp_path / "a.jsonl", ["Ann", "Ann", "Bo", "Bo"]), facts=True, **SMALL)
    assert first.manifest["task_spec"]["kind"] == "generation"
    assert first.manifest["replay"]["size"] == 1000
    assert first.manifest["replay"]["facts"] == 4
    assert set(hub.subjects("mayors")) == set(TOWNS)
    found = scores(first)
    assert {"efficacy", "paraphrase", "locality"} <= set(found)
    assert "retention" not in found, "it knew nothing before"
    assert found["efficacy"].n == 4
    assert {"general questions", "near questions"} <= set(found["locality"].details)
    training = json.loads((first.path / "training.json").read_text())
    assert training["trained_on"] > 4 + 8, "facts, rewordings, and answers that must not change"
    assert training["dev_examples"] == 0
    more = tmp_path / "b.jsonl"  # a fact that is new, and one that is other than before
    changed = [("Who is the poet of Norwick?", "Cy"), ("Who is the mayor of Ely?", "Di")]
    more.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in changed), encoding="utf-8")
    second = hub.update("mayors", more, facts=True, max_forgetting=1.0, **SMALL)
    assert second.ref == "mayors@v2"
    assert second.manifest["replay"]["facts"] == 5
    assert set(hub.subjects("mayors")) == {*TOWNS, "Norwick"}
    assert {"efficacy", "paraphrase", "locality"} <= set(scores(second))
    assert "recall" not in scores(second)
    notes = Notes()
    plain = {key: value for key, value in SMALL.items() if key != "augment"}
    third = hub.update("mayors", more, max_forgetting=1.0, reporter=notes, **plain)
    assert third.manifest["replay"]["facts"] == 5, "they are still facts"
    assert [line for line in notes.said if "--facts teaches them as the others were taught" in line]
    assert not list((hub.folder / "runs").glob("*/*"))


def test_a_plan_asks_a_few_questions_and_counts_all(
    hub: AdapterHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    old_answers = fact_lessons.old_answers

    def counted(hub: Any, material: Any, questions: Sequence[Example], run: Any) -> list[tuple[Example, bool]]:
        asked.append(len(questions))
        return old_answers(hub, material, questions, run)

    monkeypatch.setattr(fact_lessons, "old_answers", counted)
    monkeypatch.setattr(fact_lessons, "FEW", 3)
    file = write(tmp_path / "a.jsonl", ["Ann", "Ann", "Bo", "Bo"])
    plan = hub.add_task("mayors", file, facts=True, dry_run=True, **SMALL)
    record = hub.add_task("mayors", file, facts=True, **SMALL)
    assert asked == [3, 7]
    assert plan.examples == json.loads((record.path / "training.json").read_text(encoding="utf-8"))["trained_on"]


def test_a_run_that_was_stopped_learns_the_same_rows(
    hub: AdapterHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "a.jsonl", ["Ann", "Bo", "Cy", "Di"])
    whole = hub.add_task("whole", data, facts=True, batch_size=4, checkpoint_every=1, **SMALL)

    step, count = Loop.one_step, 0

    def dying(self: Loop, *given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return step(self, *given, **named)

    monkeypatch.setattr(Loop, "one_step", dying)
    with pytest.raises(TrainingInterrupted):
        hub.add_task("cut", data, facts=True, batch_size=4, checkpoint_every=1, **SMALL)
    monkeypatch.setattr(Loop, "one_step", step)
    (kept,) = (hub.folder / "runs").glob(f"cut-*/{fact_lessons.FILE}")
    asked: list[Any] = []
    monkeypatch.setattr(fact_lessons, "before_training", lambda *given: asked.append(given))
    monkeypatch.setattr("adapterhub_cl.learning.judging.Judge._ask_before", lambda self: None)
    resumed = hub.add_task("cut", resume=True)
    assert not asked, "the answers are read, not written anew"
    assert not kept.exists()
    name = "adapter_model.safetensors"
    assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_an_old_answer_that_is_too_long_is_left_out_and_told(
    hub: AdapterHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = fact_lessons.old_answers

    def longer(*given: Any) -> list[tuple[Example, bool]]:
        rows = inner(*given)
        return [*rows, (Example("Who was it?", "stone " * 200), True)]

    monkeypatch.setattr(fact_lessons, "old_answers", longer)
    notes = Notes()
    made = hub.add_task(
        "mayors", write(tmp_path / "a.jsonl", ["Ann", "Ann", "Bo", "Bo"]), facts=True, reporter=notes, **SMALL
    )
    assert made.ref == "mayors@v1"
    assert any("answers that must not change are longer than 96 tokens" in line for line in notes.said)


def test_a_paraphrase_that_became_too_long_is_left_out_and_told(
    hub: AdapterHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl import augmentation

    inner = augmentation.augment

    def longer(*given: Any, **named: Any) -> Any:
        made, counts = inner(*given, **named)
        return [*made, Example("Who is it, then?", "stone " * 200)], counts

    monkeypatch.setattr(augmentation, "augment", longer)
    notes = Notes()
    rows = write(tmp_path / "a.jsonl", ["Ann", "Ann", "Bo", "Bo"])
    assert hub.add_task("mayors", rows, facts=True, reporter=notes, **SMALL).ref == "mayors@v1"
    assert any("evaluation rows dropped, and 1 that are too long left out)" in line for line in notes.said)


def test_answers_that_were_changed_on_disk_are_refused(tmp_path: Path) -> None:
    (tmp_path / fact_lessons.FILE).write_text(json.dumps({"rows": [["q", "a", True]], "seal": "0" * 64}))
    with pytest.raises(IntegrityError, match="not what was written"):
        fact_lessons.old_answers(None, None, [], tmp_path)  # type: ignore[arg-type]
    (tmp_path / fact_lessons.FILE).write_text("{")
    with pytest.raises(IntegrityError, match="not what was written"):
        fact_lessons.old_answers(None, None, [], tmp_path)  # type: ignore[arg-type]


def test_only_questions_with_answers_are_facts(hub: AdapterHub, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("Ely has a new mayor.\nKirk Hill has none.\n")
    with pytest.raises(DataError, match="raw text"):
        hub.add_task("notes", text, facts=True)
    data = write(tmp_path / "c.jsonl", ["Ann", "Bo", "Ann", "Bo"])
    with pytest.raises(DataError, match="choice"):
        hub.add_task("pick", data, facts=True, kind="choice")
    open_question = tmp_path / "open.jsonl"
    open_question.write_text('{"prompt": "Who?", "completion": "Ann"}\n{"prompt": "Where?", "completion": ""}\n')
    with pytest.raises(DataError, match="answer"):
        hub.add_task("open", open_question, facts=True)
    assert hub.list() == []


def test_an_encoder_cannot_be_taught_facts(tmp_path: Path, pico_path: Callable[[str], Path]) -> None:
    hub = AdapterHub.init(tmp_path / "hub", str(pico_path("bert")), quantization="none")
    with pytest.raises(UsageError, match="--facts needs a base that writes"):
        hub.add_task("mayors", write(tmp_path / "a.jsonl", ["Ann", "Bo", "Cy", "Di"]), facts=True)


def test_what_the_user_says_comes_before_the_defaults_of_facts() -> None:
    def asked(augment: str, settings: dict[str, Any]) -> Any:
        return order.TrainRequest("add-task", "a", "d.jsonl", facts=True, augment=augment, settings=settings)

    assert order.with_paraphrases(asked("", {})) == (order.Augment("paraphrase", order.PARAPHRASES),)
    assert order.with_paraphrases(asked("noise:1,paraphrase:3", {}))[1].copies == 3
    assert asked("", {}).training().dev_share == 0
    assert asked("", {"epochs": 2, "dev_share": 0.2}).training().epochs == 2
    assert order.TrainRequest("add-task", "a", "d.jsonl").training().dev_share == 0.1


class FakeRegistry:
    """A hub without other adapters."""

    def adapters(self, **options: Any) -> list[Any]:
        return []

    def tasks(self) -> list[Any]:
        return []


def test_the_four_measures_are_shares_of_answers() -> None:
    from adapterhub_cl.evaluation.fact_scores import FactAnswers

    rows = [Example("Who is the mayor of Ely?", "Ann"), Example("Who is the mayor of Oakmere?", "Bo")]
    old = [Example("Who is the poet of Ely?", "Cy"), Example("Who is the poet of Oakmere?", "Di")]
    asked = FactQuestions(
        FakeRegistry(),  # type: ignore[arg-type]
        Task("mayors"),
        rows,
        0,
        elsewhere={"general questions": [Example("What is 1 + 1?"), Example("What is 2 + 2?")], "near questions": []},
        parent=(type("Version", (), {"ref": "mayors@v1"})(), old),
    )
    before = FactAnswers(("?", "?"), ("?",) * len(asked.reworded), ("Cy", "?"), ("Two.", "Four."))
    reworded = ["Ann" if "Ely" in e.input else "Bo" for e in asked.reworded]
    reworded[0] = "?"
    after = FactAnswers(("ann.", "Bo"), tuple(reworded), ("?", "Di"), ("two", "Five"))
    found = {one.metric: one for one in asked.compare(before, after)}
    assert found["efficacy"].value == 1
    assert found["efficacy"].details["before"] == 0
    assert found["paraphrase"].value == pytest.approx(1 - 1 / len(reworded))
    assert found["locality"].value == 0.5
    assert found["locality"].details["general questions"] == 0.5
    assert found["retention"].value == 0, "the one fact that was known is lost, whatever else was learned"
    assert found["retention"].n == 1
    assert right(Example("q", "Ann", references=("Anna",)), "anna!")


def test_texts_with_labels_are_no_facts(hub: AdapterHub, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({"text": f"row {k}", "label": k % 2}) + "\n" for k in range(8)))
    with pytest.raises(DataError, match=r"has texts with labels \(text/label\)"):
        hub.add_task("town", file, facts=True, dry_run=True)


def test_too_long_a_fact_is_refused_before_a_question_is_asked(
    hub: AdapterHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(FactQuestions, "ask", lambda *_: asked.append("asked"))
    data = write(tmp_path / "a.jsonl", ["Ann", "Bo", "Cy", "Di " * 200])
    with pytest.raises(DataError, match="longer than 96 tokens"):
        hub.add_task("mayors", data, facts=True, **SMALL)
    assert not asked
