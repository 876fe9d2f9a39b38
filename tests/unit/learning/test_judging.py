"""What a version that learns a known task anew is compared on with the one that serves it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from encoder_hubs import QUICK, Notes, new_hub

from adapterhub_cl.data.columns import Examples, read_examples
from adapterhub_cl.evaluation.probes import without
from adapterhub_cl.learning.judging import Judge, not_learned
from adapterhub_cl.learning.material import Material
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation, Example, Task

MOOD = Task("mood", "choice", instruction="Good or bad?", labels=("bad", "good"), metric="accuracy")


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": "good"}) + "\n" for text in texts))
    return path


@pytest.fixture
def hub(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "hub", BaseInfo("tiny", "f" * 64, quantization="none"))


def publish(hub: Registry, task: Task = MOOD, *, held: Examples | None = None, status: str = "active") -> AdapterRecord:
    told = None if held is None else {"source": held.source, "sha256": held.sha256, "examples": len(held)}
    with hub.new_draft("mood") as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
        sample = {"input": "a sample", "output": "good", "instruction": task.instruction}
        (draft.path / "replay.jsonl").write_text(json.dumps(sample) + "\n")
        training = {"data": {"source": "gone.jsonl", "columns": {}}, "eval": told, "settings": {"max_length": 64}}
        manifest = {"kind": "trained", "rank": 2, "status": status, "training": training}
        return hub.publish(draft, manifest, task=task, verb="add-task")


def own_probe(hub: Registry, task: Task, held: Examples | None, parent: AdapterRecord | None = None) -> Any:
    """What `Judge` would compare on, of a version that learns a task with this held-out data."""
    judge = Judge.__new__(Judge)
    data = Examples([Example("new", "good")], "text/label", "new.jsonl", "0" * 64, 0, ["new"])
    judge.registry, judge.length = hub, 32
    judge.material = Material(data, held, task, parent)
    judge.request = SimpleNamespace(verb="add-task")  # type: ignore[assignment]
    return judge._own_probe(hub.get(hub.serving()["mood"]))


def test_the_older_version_s_held_out_data_come_first(hub: Registry, tmp_path: Path) -> None:
    old = read_examples(write(tmp_path / "old.jsonl", "one", "two"), None, MOOD.instruction)
    publish(hub, held=old)
    found = own_probe(hub, MOOD, read_examples(write(tmp_path / "new.jsonl", "three")))
    assert (found.data, found.sha256, len(found.examples)) == (old.source, old.sha256, 2)


def test_data_held_out_now_come_before_what_the_older_version_was_trained_on(hub: Registry, tmp_path: Path) -> None:
    first = publish(hub)
    held = read_examples(write(tmp_path / "new.jsonl", "three"))
    assert own_probe(hub, MOOD, held).data == held.source
    assert own_probe(hub, MOOD, None).data == "replay samples of mood@v1"
    assert own_probe(hub, MOOD, held, parent=first).data == "replay samples of mood@v1", "it has learned them too"


def test_each_version_is_asked_as_it_was_taught(hub: Registry) -> None:
    publish(hub)
    publish(hub, replace(MOOD, instruction="Which mood?"), status="rejected")
    assert hub.task("mood") == replace(MOOD, max_length=64), (
        "a rejected version changes nothing of the task that another one serves"
    )
    found = own_probe(hub, replace(MOOD, instruction="Say the mood:", prompt_format="alpaca"), None)
    assert found.task == replace(MOOD, max_length=64), "with the limit that its version was trained with"
    assert [e.instruction for e in found.examples] == ["Good or bad?"]


@pytest.mark.parametrize("change", [{"metric": "macro_f1"}, {"kind": "generation", "labels": ()}])
def test_scores_of_another_kind_are_not_compared(hub: Registry, change: dict[str, Any]) -> None:
    publish(hub)
    assert own_probe(hub, replace(MOOD, **change), None) is None


def judge_of(hub: Registry, data: Examples, held: Examples | None, verb: str = "update") -> tuple[Judge, list[str]]:
    """A judge of a run on this data, and what it says."""
    judge, said = Judge.__new__(Judge), list[str]()
    judge.registry, judge.length, judge.probes, judge.outdated = hub, 32, [], set()
    task = replace(MOOD, labels=tuple(sorted({*MOOD.labels, *(e.answer or "" for e in data)})))
    judge.material = Material(data, held, task, hub.get("mood"))
    judge.request = SimpleNamespace(verb=verb)  # type: ignore[assignment]
    judge.reporter = SimpleNamespace(note=said.append)  # type: ignore[assignment]
    return judge, said


def rows(*pairs: tuple[str, str]) -> Examples:
    made = [Example(text, label, MOOD.instruction) for text, label in pairs]
    return Examples(made, "text/label", "new.jsonl", "0" * 64, 0, [f"row {k}" for k in range(len(made))])


def test_held_out_rows_that_are_answered_otherwise_now_are_not_compared(hub: Registry, tmp_path: Path) -> None:
    held = read_examples(write(tmp_path / "old.jsonl", "one", "two", "three"), None, MOOD.instruction)
    first = publish(hub, held=held)
    judge, said = judge_of(hub, rows(("ONE", "bad"), ("two", "good")), None)
    whole = judge._own_probe(first)
    assert whole is not None
    probe = judge._up_to_date(whole)
    assert probe is not None
    assert [e.input for e in probe.examples] == ["two", "three"]
    assert (probe.left_out, whole.left_out) == (1, 0)
    assert (probe.data != whole.data, probe.sha256 != whole.sha256) == (True, True), "two scores never taken for one"
    assert said == ["note: the gate leaves out 1 held-out row that contradicts the new data"]
    later = without(whole, judge.outdated)
    assert later == probe, "`promote` leaves out the same rows"
    judge, said = judge_of(hub, rows(*((text, "bad") for text in ("one", "two", "three"))), None)
    assert judge._up_to_date(whole) is None
    judge, said = judge_of(hub, rows(("one", "bad")), None, "add-task")
    assert (judge._up_to_date(whole), said) == (whole, [])


def test_a_label_that_no_held_out_row_has_is_named(hub: Registry, tmp_path: Path) -> None:
    held = read_examples(write(tmp_path / "old.jsonl", "one"), None, MOOD.instruction)
    first = publish(hub, held=held)
    fresh = rows(("a", "good"), ("b", "Schluessel"), ("c", "bad"))
    judge, said = judge_of(hub, fresh, held)
    judge._tell_unmeasured()
    assert said == ["note: no held-out row has the label Schluessel"], "the update brings it; bad was there before"
    judge, said = judge_of(hub, fresh, held, "add-task")
    judge._tell_unmeasured()
    assert said == ["note: no held-out row has the labels Schluessel, bad"]
    judge, said = judge_of(hub, fresh, None)
    probe = judge._own_probe(first)
    assert probe is not None
    judge.probes = [(probe, None, "mood@v1")]  # type: ignore[list-item]
    judge._tell_unmeasured()
    assert said == ["note: no held-out row has the label Schluessel"], "the recorded held-out data give the headline"
    judge, said = judge_of(hub, fresh, rows(("x", "Schluessel"), ("y", "bad")))
    judge._tell_unmeasured()
    assert said == []


@pytest.mark.parametrize(
    ("of", "before", "after", "warned"),
    [
        ("exact_match", 0.0, 0.0, True),
        ("exact_match", 0.2, 0.1, True),
        ("exact_match", 0.0, 0.3, False),
        ("accuracy", 1.0, 1.0, False),
        ("perplexity", 9.0, 9.0, False),
    ],
)
def test_an_update_that_taught_nothing_is_told(of: str, before: float, after: float, warned: bool) -> None:
    value = 0.1 if of == "perplexity" else after
    recall = Evaluation("t", "recall", value, 4, "x", {"of": of, "before": before, "after": after})
    assert bool(not_learned([recall])) == warned
    assert not_learned([]) == ""


def test_a_version_that_serves_unlearned_is_told_the_way_back(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert"))
    rows = [{"input": f"{word} thing {i}", "output": word} for word in ("red", "green") for i in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = tmp_path / "wrong.jsonl"
    swapped = {"red": "green", "green": "red"}
    wrong.write_text("".join(json.dumps({**row, "output": swapped[row["output"]]}) + "\n" for row in rows))
    own: dict[str, Any] = {**QUICK, "replay": "none", "max_forgetting": 1.0}
    hub.add_task("colours", file, **{**own, "epochs": 12})
    for more, told in (({}, True), ({"serve": False}, False)):
        notes = Notes()
        record = hub.update("colours", wrong, **{**own, "learning_rate": 1e-9, **more}, reporter=notes)
        assert record.training["learning_rate"] == 1e-9
        (warned,) = [line for line in notes.said if "were not learned" in line]
        assert warned.endswith("cl-adapter rollback colours@latest brings back the version before") == told
        if told:
            assert hub.rollback("colours@latest")[1].ref == "colours@v1"
