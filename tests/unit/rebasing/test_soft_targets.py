"""`rebase --soft-targets`: what the old version says of each label is learned beside the right one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from crashes import in_child
from encoder_hubs import COLOURS, QUICK, Notes, data, new_hub, rows, teach, write
from stopping import StopAtStep

from adapterhub_cl import AdapterHub, training_file
from adapterhub_cl.errors import IntegrityError, UsageError
from adapterhub_cl.learning.soft_targets import OldProbabilities, along
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.strategies.told_rows import NEVER, top_divergence

BRIEF: dict[str, Any] = {"epochs": 1, "min_retention": 0}


def test_each_token_has_the_labels_that_begin_like_the_answer() -> None:
    paths = {"good day": (1, 2, 9), "good night": (1, 3, 9), "bad": (4, 9)}
    logs, ids = along((1, 2, 9), paths, {"good day": 0.5, "good night": 0.3, "bad": 0.2})
    assert ids.tolist() == [[1, 4], [2, 3], [9, 0]]
    assert logs.exp().tolist() == [pytest.approx([0.8, 0.2]), pytest.approx([0.625, 0.375]), pytest.approx([1.0, 0.0])]


def test_a_label_that_the_old_version_ruled_out_is_learned_as_it_is() -> None:
    logs, ids = along((1, 2), {"yes": (1, 2), "yes!": (1, 3), "no": (4, 2)}, {"yes": 0.0, "yes!": 0.0, "no": 1.0})
    assert ids[0, 0] == 4, "the first token is the old version's"
    assert (ids[1, 0], logs[1, 0]) == (2, 0.0), "what follows the right label's first token is unknown to it"


def test_a_model_that_says_the_same_has_no_divergence() -> None:
    logs, ids = along((1, 2), {"a": (1, 2), "b": (3, 2)}, {"a": 0.7, "b": 0.3})
    logits = torch.full((2, 6), NEVER)
    logits[0, 1], logits[0, 3], logits[1, 2] = torch.tensor([0.7, 0.3, 1.0]).log()
    assert float(top_divergence(logs, ids, logits)) == pytest.approx(0.0, abs=1e-4)
    assert float(top_divergence(logs, ids, torch.zeros(2, 6))) > 0.5


@pytest.mark.parametrize(
    ("before", "after", "source"),
    [("bert", "roberta", "samples"), ("llama", "bert", "data"), ("bert", "llama", "data")],
)
def test_every_row_that_is_learned_has_a_target(
    pico_path: Callable[[str], Path], tmp_path: Path, before: str, after: str, source: str
) -> None:
    hub = new_hub(tmp_path / "old", pico_path(before))
    there = tmp_path / "there"
    there.mkdir()
    files: dict[str, Any] = {"data": data(there, COLOURS), "eval": data(there, COLOURS, 24, 1)}
    hub.add_task("colours", **files, **QUICK, kind="choice", replay="balanced:24")
    if source == "samples":
        for path in there.iterdir():
            path.unlink()
    found = hub.rebase(str(pico_path(after)), to=str(tmp_path / "new"), soft_targets=0.5, **BRIEF).tasks[0]
    assert (found.state, found.source) == ("moved", source)
    record = AdapterHub.open(tmp_path / "new").get("colours@v1")
    told = record.manifest["rebased_from"]["soft_targets"]
    assert told["weight"] == 0.5
    assert training_file.read(record.path)["strategy_summary"]["soft targets"] == {"rows": found.rows, "weight": 0.5}
    old = OldProbabilities.read(tmp_path / "new" / told["file"])
    assert old.labels == sorted(COLOURS)
    assert all(sum(row) == pytest.approx(1.0, abs=1e-3) for row in old.rows.values())
    assert len(old.rows) == found.rows


def test_a_doubtful_old_version_makes_a_doubtful_new_one(
    pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says one third of each label, and that weighs more than the right labels."""
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    teach(hub, tmp_path, "colours", COLOURS)
    doubtful = classmethod(lambda cls, path: cls(COLOURS, {key: [1 / 3] * 3 for key in read(path).rows}))
    read = OldProbabilities.read
    monkeypatch.setattr(OldProbabilities, "read", doubtful)
    sure = []
    for weight in (0.0, 50.0):
        given: dict[str, Any] = {"to": str(tmp_path / f"new-{weight:g}"), "min_retention": 0, "soft_targets": weight}
        hub.rebase(str(pico_path("roberta")), **given, epochs=6, learning_rate=0.01)
        asked = [row["input"] for row in rows(COLOURS, 24, 1)]
        answers = AdapterHub.open(given["to"]).predict(asked, task="colours")
        sure.append(fmean(answer.confidence for answer in answers))
    assert sure[0] > 0.55
    assert sure[1] < 0.45


def test_soft_targets_that_are_asked_for_later_are_made(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    teach(hub, tmp_path, "colours", COLOURS)
    base, to = str(pico_path("roberta")), str(tmp_path / "new")
    hub.rebase(base, to=to, tasks=["colours"], **{**BRIEF, "min_retention": 1.0, "learning_rate": 1e-7})
    assert not (tmp_path / "new/rebase/colours/old-probabilities.json").exists()
    again = hub.rebase(base, to=to, again=True, soft_targets=20.0, epochs=8, learning_rate=0.01).tasks[0]
    assert (again.state, again.new) == ("moved", "colours@v2")
    assert again.new_score is not None
    assert again.new_score > 0.8, "the old version is right, and weighs twenty times as much as the labels"
    assert (tmp_path / "new/rebase/colours/old-probabilities.json").exists()


def test_a_label_that_the_old_version_does_not_know_has_no_target(
    pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    teach(hub, tmp_path, "colours", COLOURS)
    predict = BaseObjective.predict

    def without_red(*given: Any, **options: Any) -> Any:
        return [one._replace(scores={"blue": 0.5, "green": 0.5}) for one in predict(*given, **options)]

    monkeypatch.setattr(BaseObjective, "predict", without_red)
    notes = Notes()
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "soft_targets": 1.0, **BRIEF, "reporter": notes}
    hub.rebase(str(pico_path("roberta")), **asked)
    assert "note: 16 rows have labels that colours@v1 does not know: no soft targets" in notes.said
    old = OldProbabilities.read(tmp_path / "new/rebase/colours/old-probabilities.json")
    assert (old.labels, len(old.rows)) == (["blue", "green"], 32)


@pytest.mark.parametrize("source", ["data", "samples"])
def test_a_killed_rebase_goes_on_after_the_new_hub_was_renamed(
    pico_path: Callable[[str], Path], tmp_path: Path, source: str
) -> None:
    hub, there = new_hub(tmp_path / "old", pico_path("bert")), tmp_path / "there"
    there.mkdir()
    teach(hub, there, "colours", COLOURS, replay="balanced:24")
    if source == "samples":
        shutil.rmtree(there)
    base, asked = str(pico_path("roberta")), {**BRIEF, "soft_targets": 1.0}
    killed = in_child(lambda: hub.rebase(base, to=str(tmp_path / "new"), reporter=StopAtStep(2), **asked))
    assert killed == 137
    (tmp_path / "new").rename(tmp_path / "renamed")
    [moved] = hub.rebase(base, to=str(tmp_path / "renamed"), **asked).tasks
    assert (moved.state, moved.source) == ("moved", source)


def test_free_answers_have_none(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "old", pico_path("llama"))
    free = [{"input": f"say {k}", "output": f"it is {k} of {k + 1}"} for k in range(24)]
    hub.add_task("free", write(tmp_path / "free.jsonl", free), kind="generation", **QUICK)
    planned = hub.rebase(str(pico_path("qwen2")), to=str(tmp_path / "new"), soft_targets=1.0, dry_run=True).tasks[0]
    assert "--soft-targets changes nothing" in planned.notes[-1]


@pytest.mark.parametrize("weight", [-1, 101, float("nan")])
def test_a_weight_out_of_range_is_refused(pico_path: Callable[[str], Path], tmp_path: Path, weight: float) -> None:
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    with pytest.raises(UsageError, match="--soft-targets must be between 0 and 100"):
        hub.rebase(str(pico_path("roberta")), to=str(tmp_path / "new"), soft_targets=weight)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"labels": ["a"], "rows": {"1": [2]}}', '{"labels": ["a"], "rows": {"1": []}}', '{"labels": 1}'],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old-probabilities.json"
    path.write_text(text)
    with pytest.raises(IntegrityError, match="cannot be read") as refused:
        OldProbabilities.read(path)
    assert "run the same cl-adapter rebase again" in refused.value.hint


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "old-probabilities.json"
    with pytest.raises(IntegrityError, match="cannot be read"):
        OldProbabilities.read(path)
    OldProbabilities(["a", "b"], {7: [0.25, 0.75]}).write(path)
    assert OldProbabilities.read(path) == OldProbabilities(["a", "b"], {7: [0.25, 0.75]})
