"""`--forecast`: signs after a fifth of the steps, a training that goes on untouched or is stopped, and what is told."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_adapter.__main__ import main
from encoder_hubs import ANIMALS, COLOURS, QUICK, Notes, data, new_hub
from safetensors.torch import load_file

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import GateRefused, UsageError
from adapterhub_cl.forecasting import early_signs, expectation
from adapterhub_cl.forecasting.expectation import Expectation, Expected, Signs, features, fitted
from adapterhub_cl.forecasting.forecast import Forecast, TaskForecast
from adapterhub_cl.learning import foretelling
from adapterhub_cl.learning.some_rows import some_preferences
from adapterhub_cl.types import Example

OWN: dict[str, Any] = {**QUICK, "epochs": 2, "kind": "choice", "replay": "balanced:12", "max_forgetting": 1.0}
SHARED: dict[str, Any] = {**OWN, "strategy": "sequential", "forecast": True}
SIGNS = Signs(0.9, 0.5, 0.3, 0.2, 0.25, 0.1, 0.7, 0.2, 0.4, 0.05, 0.0, 0.1, 0.1)


def always(drop: float, error: float) -> Expectation:
    """A model that foretells the same drop for every task."""

    class Always(Expectation):
        def raw(self, seen: Mapping[str, float]) -> float:
            return drop

    return Always({}, error, 0.0, 1.0, {"spearman": 0.5, "coverage": 0.5})


@pytest.fixture(scope="module")
def first(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A hub that knows colours."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            place = tmp_path_factory.mktemp("foretell")
            made = new_hub(place / "hub", pico_path(kind))
            made.add_task("colours", data(place, COLOURS), eval=data(place, COLOURS, 24, 1), **OWN)
            folders[kind] = place / "hub"
        return folders[kind]

    return folder


def copied(folder: Path, place: Path) -> AdapterHub:
    return AdapterHub.open(shutil.copytree(folder, place), dtype="fp32")


def weights(record: Any) -> dict[str, torch.Tensor]:
    return load_file(record.path / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_forecast_is_kept_beside_what_was_measured_and_changes_nothing(
    first: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    hub, notes = copied(first(kind), tmp_path / "hub"), Notes()
    rows = data(tmp_path, ANIMALS)
    made = hub.add_task("animals", rows, **SHARED, reporter=notes)
    told = made.manifest["forecast"]
    assert (told["step"], told["steps"], told["refused"]) == (4, 12, False)
    (task,) = told["tasks"]
    signs = Signs(**task["signs"])
    assert task["task"] == "colours"
    assert task["before"] == hub.get("colours").metrics["accuracy"] == pytest.approx(signs.before, abs=1e-6)
    assert signs.chance == pytest.approx(1 / 3, abs=1e-6)
    assert signs.divergence > 0
    assert 0 < signs.overlap <= 1
    assert -1 <= signs.nearness <= 1
    assert signs.path == pytest.approx(0.01 * 12)
    assert -1 <= signs.held_drop <= 1
    expected = fitted().of(signs)
    assert (task["drop"], task["low"], task["high"]) == pytest.approx(
        (expected.drop, expected.low, expected.high), abs=1e-3
    )
    assert task["low"] <= task["drop"] <= task["high"]
    assert any("colours: accuracy" in line and "expected drop" in line for line in notes.said)
    assert "colours" in {row["task"] for row in made.manifest["gate"]["effects"]}
    plain = copied(first(kind), tmp_path / "plain").add_task("animals", rows, **{**SHARED, "forecast": False})
    assert "forecast" not in plain.manifest
    one, two = weights(made), weights(plain)
    assert all(torch.equal(one[key], two[key]) for key in one), "looking on changed the training"


@pytest.mark.parametrize("most", [8, 200])
def test_the_score_is_measured_again_on_rows_of_the_gate(
    first: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """On all of the gate's rows the score before is known; on some of them it is measured at the start too."""
    asked: list[tuple[int, float]] = []
    inner = early_signs.score

    def noted(model: Any, base: Any, probe: Any, *more: Any) -> Any:
        found = inner(model, base, probe, *more)
        asked.append((len(probe.examples), found.value))
        return found

    monkeypatch.setattr(early_signs, "score", noted)
    monkeypatch.setattr(foretelling, "MEASURED", most)
    hub = copied(first("bert"), tmp_path / "hub")
    made = hub.add_task("animals", data(tmp_path, ANIMALS), **SHARED)
    (task,) = made.manifest["forecast"]["tasks"]
    (effect,) = (row for row in made.manifest["gate"]["effects"] if row["task"] == "colours")
    scores = [score for _, score in asked] if most < effect["n"] else [effect["before"], asked[0][1]]
    assert [count for count, _ in asked] == ([most, most] if most < effect["n"] else [effect["n"]])
    assert task["signs"]["lost"] == pytest.approx(scores[0] - scores[1], abs=1e-6)


def test_a_training_that_will_be_refused_is_stopped_and_leaves_nothing(
    first: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = copied(first("llama"), tmp_path / "hub")
    monkeypatch.setattr(foretelling, "fitted", lambda: always(0.5, 0.1))
    asked = {**SHARED, "max_forgetting": 0.1, "checkpoint_every": 1}
    with pytest.raises(GateRefused, match=r"stopped after step 4 of 12, and nothing was recorded") as caught:
        hub.add_task("animals", data(tmp_path, ANIMALS), **asked)
    assert caught.value.record is None
    assert caught.value.gate["forecast"]["refused"]
    assert "add-task animals" in caught.value.hint
    assert [record.ref for record in hub.registry.adapters()] == ["colours@v1"]
    assert not list(hub.registry.runs_dir.glob("animals-*"))
    monkeypatch.setattr(foretelling, "fitted", lambda: always(0.3, 0.2))  # it may pass
    notes = Notes()
    hub.add_task("animals", data(tmp_path, ANIMALS), **{**SHARED, "max_forgetting": 0.29}, serve=False, reporter=notes)
    assert any("colours may drop by more than 0.29" in line for line in notes.said)


class Killed(Exception):
    """Stands for kill -9."""


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_is_resumed_has_the_same_forecast(
    first: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Killed with a checkpoint before the forecast, or behind it with the forecast kept."""
    hub = copied(first("bert"), tmp_path / "hub")
    whole = hub.add_task("animals", data(tmp_path, ANIMALS), **SHARED).manifest["forecast"]
    again = copied(first("bert"), tmp_path / "again")
    method = foretelling.Foreteller._foretell

    def kill(self: Any, *given: Any) -> None:
        if not lost:
            method(self, *given)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(foretelling.Foreteller, "_foretell", kill)
        patch.setattr("adapterhub_cl.learning.teaching.leave", lambda *_: None)
        with pytest.raises(Killed):
            again.add_task("animals", data(tmp_path, ANIMALS), **SHARED, checkpoint_every=1)
    told = again.add_task("animals", resume=True).manifest["forecast"]
    assert told == whole


def test_where_nothing_can_be_lost_or_told_it_is_said(first: Callable[[str], Path], tmp_path: Path) -> None:
    hub, notes = copied(first("bert"), tmp_path / "hub"), Notes()
    rows = data(tmp_path, ANIMALS)
    alone = hub.add_task("alone", rows, **{**SHARED, "strategy": "isolated"}, reporter=notes)
    assert alone.manifest["forecast"]["tasks"] == []
    assert any("the expected drop is 0" in line for line in notes.said)
    with pytest.raises(UsageError, match="--dry-run trains nothing"):
        hub.add_task("alone", rows, **SHARED, dry_run=True)
    every = hub.add_task("every", rows, **{**SHARED, "strategy": "multitask"}, reporter=notes)
    assert "learns the data of every task again" in every.manifest["forecast"]["reason"]


def test_a_task_without_samples_is_named(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub, notes = new_hub(tmp_path / "hub", pico_path("llama")), Notes()
    held = data(tmp_path, COLOURS, 24, 1)
    only = hub.add_task("colours", data(tmp_path, COLOURS), eval=held, **{**SHARED, "replay": "none"}, reporter=notes)
    assert only.manifest["forecast"]["reason"] == "there is no other task that could be forgotten"
    made = hub.add_task("animals", data(tmp_path, ANIMALS), **SHARED, reporter=notes)
    assert "colours: it keeps no replay samples" in made.manifest["forecast"]["reason"]


def test_a_task_whose_measured_rows_cannot_be_used_is_named(
    first: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, inner = copied(first("bert"), tmp_path / "hub"), foretelling.some_rows

    def without(base: Any, task: Any, rows: Any, settings: Any, most: int, draw: str) -> Any:
        return ([], []) if most == foretelling.MEASURED else inner(base, task, rows, settings, most, draw)

    monkeypatch.setattr(foretelling, "some_rows", without)
    told = hub.add_task("animals", data(tmp_path, ANIMALS), **SHARED).manifest["forecast"]
    assert told["reason"] == "none can be made: colours: no row that it is measured on can be used"


@pytest.mark.parametrize("most", [4, 200])
def test_a_task_of_judged_answers_is_measured_on_both_kinds(
    pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The disliked answers have no loss of their own, and are compared with the liked ones all the same."""
    monkeypatch.setattr(foretelling, "MEASURED", most)
    hub = new_hub(tmp_path / "hub", pico_path("llama"))
    judged = [
        {"prompt": f"tell {k}", "completion": "the red apple" if k % 3 else "the blue stone", "label": k % 3 > 0}
        for k in range(24)
    ]
    file = tmp_path / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in judged))
    options = {key: value for key, value in OWN.items() if key != "kind"}
    hub.add_task("judged", file, **options)
    made = hub.add_task("animals", data(tmp_path, ANIMALS), **SHARED)
    (task,) = made.manifest["forecast"]["tasks"]
    assert (task["task"], task["metric"]) == ("judged", "reward_accuracy")
    assert task["drop"] is not None


def test_as_many_liked_as_disliked_answers_are_taken() -> None:
    rows = [Example("", f"q{k}", "a", desirable=k > 1) for k in range(20)]
    taken = some_preferences(rows, 4, "draw")
    assert sorted(bool(row.desirable) for row in taken) == [False, False, True, True]
    assert len(some_preferences(rows, 100, "draw")) == 20


def test_the_decision_follows_the_interval() -> None:
    def of(*expected: Expected | None) -> Forecast:
        return Forecast(
            0.1, [TaskForecast(f"t{k}", "accuracy", 0.9, one, SIGNS) for k, one in enumerate(expected)], 1, 5
        )

    assert of(Expected(0.3, 0.11, 0.5)).refused
    assert not of(Expected(0.3, 0.09, 0.5)).refused
    assert [one.task for one in of(Expected(0.3, 0.09, 0.5), Expected(0.0, -0.1, 0.1)).likely] == ["t0"]
    together = of(Expected(0.4, 0.25, 0.5), Expected(0.1, 0.05, 0.3))
    assert [one.task for one in together.doomed] == ["t0"]
    assert together.doomed_together
    one = of(Expected(0.3, 0.11, 0.5), None)
    assert Forecast.from_json(json.loads(json.dumps(one.to_json()))) == replace(one, tasks=tuple(one.tasks))


def test_a_share_of_raw_text_is_not_called_perplexity(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub, notes = new_hub(tmp_path / "hub", pico_path("llama")), Notes()
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the red apple and the blue stone {k} stand here" for k in range(24)))
    hub.add_task("text", text, **{key: value for key, value in OWN.items() if key != "kind"})
    made = hub.add_task("animals", data(tmp_path, ANIMALS), **SHARED, reporter=notes)
    (task,) = made.manifest["forecast"]["tasks"]
    (effect,) = (row for row in made.manifest["gate"]["effects"] if row["task"] == "text")
    assert task["metric"] == "token_likelihood"
    assert task["before"] == pytest.approx(effect["before"], abs=1e-6)
    assert any("text: token_likelihood 0.0" in line for line in notes.said)
    old = Forecast(0.1, [TaskForecast("t", "perplexity", 0.01, Expected(0.0, 0.0, 0.0), SIGNS)], 1, 5).to_json()
    assert "token_likelihood 0.010" in Forecast.from_json(json.loads(json.dumps(old))).tasks[0].describe()


def test_the_shipped_model_can_be_used_and_says_its_error() -> None:
    model = fitted()
    assert set(model.weights) <= set(features(SIGNS))
    found = model.of(SIGNS)
    assert found.low < found.drop < found.high <= SIGNS.before
    assert all(math.isfinite(value) for value in (*model.weights.values(), model.floor, model.growth))
    assert model.error["steps"] >= 60
    assert 0 <= model.error["coverage"] <= 1
    told = Forecast(0.1, [TaskForecast("t", "accuracy", 0.9, found, SIGNS)], 1, 5, model.error).trust()
    assert f"{model.error['spearman']:.2f}" in told
    assert ("the aim is" in told) == (not model.error["aim_reached"])
    assert expectation.LEVEL == 0.9


def test_no_drop_exceeds_the_score() -> None:
    found = always(2.0, 0.5).of(SIGNS)
    assert found.drop == found.high == SIGNS.before


def test_an_update_foretells_the_other_tasks_that_its_version_answers_for(
    first: Callable[[str], Path], tmp_path: Path
) -> None:
    hub = copied(first("bert"), tmp_path / "hub")
    plain = {**SHARED, "forecast": False}
    hub.add_task("animals", data(tmp_path, ANIMALS), **plain)
    options = {key: value for key, value in OWN.items() if key not in ("kind", "rank")}
    made = hub.update("animals", data(tmp_path, ANIMALS, 24, 7), forecast=True, **options)
    assert [one["task"] for one in made.manifest["forecast"]["tasks"]] == ["colours"]


def test_the_command_prints_what_was_foretold_beside_what_was_measured(
    first: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = copied(first("bert"), tmp_path / "hub")
    rows = str(data(tmp_path, ANIMALS))
    line = ["--hub", str(hub.folder), "add-task", "animals", rows, "--strategy", "sequential", "--forecast", "--epochs"]
    more = ["2", "--batch-size", "8", "--learning-rate", "0.01", "--dev-share", "0", "--max-forgetting", "1"]
    assert main([*line, *more, "--general", "none"]) == 0
    shown = capsys.readouterr()
    assert "colours: a drop of" in shown.out
    assert "was foretold" in shown.out
    assert "90 % interval" in shown.err
    assert main([*line[:2], "update", "animals", "-", "--online", "--forecast"]) == 2
    assert "--forecast cannot be used with --online" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["osf", "inflora", "incremental"])
def test_an_adapter_that_is_frozen_beneath_stays_so(
    first: Callable[[str], Path], tmp_path: Path, strategy: str
) -> None:
    hub = copied(first("llama"), tmp_path / "hub")
    rows = data(tmp_path, ANIMALS)
    made = hub.add_task("animals", rows, **{**SHARED, "strategy": strategy})
    assert [one["task"] for one in made.manifest["forecast"]["tasks"]] == ["colours"]
    plain = copied(first("llama"), tmp_path / "plain")
    other = plain.add_task("animals", rows, **{**SHARED, "strategy": strategy, "forecast": False})
    name = "adapter_model.safetensors"
    assert (made.path / name).read_bytes() == (other.path / name).read_bytes()
