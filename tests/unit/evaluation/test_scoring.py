"""What an evaluation tells beside the scores: inputs that did not fit, and the scores of single examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cl_adapter.__main__ import main
from encoder_hubs import COLOURS, data, new_hub, write

from adapterhub_cl.evaluation import metrics
from adapterhub_cl.evaluation.intervals import paired_correlation
from adapterhub_cl.evaluation.probes import Probe, effect, probe_of, score_version
from adapterhub_cl.evaluation.stages import source_of
from adapterhub_cl.registry.shapes import sound_details
from adapterhub_cl.types import Evaluation, Example, Task


def test_inputs_that_were_cut_are_counted_and_told(
    pico_path: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("llama"))
    own: dict[str, Any] = {"rank": 4, "epochs": 1, "dev_share": 0.0, "max_length": 40}
    tests = [{"input": f"red apple {k}" + " stone river" * (20 if k < 2 else 0), "output": "red"} for k in range(5)]
    held = write(tmp_path / "tests.jsonl", tests)
    hub.add_task("colours", data(tmp_path, COLOURS, 12), eval=held, kind="choice", **own)
    [(_, score), *others] = hub.evaluate(["colours"])
    assert score.details["cut_inputs"] == 2
    assert all("cut_inputs" not in other.details for _, other in others), "the same rows, said once"
    capsys.readouterr()
    assert main(["--hub", str(hub.folder), "eval", "colours"]) == 0
    assert "note: 2 of 5 inputs of colours are longer than colours@v1 was trained to read" in capsys.readouterr().err
    assert main(["--hub", str(hub.folder), "--json", "eval", "colours", "--data", str(held)]) == 0
    first, *_ = json.loads(capsys.readouterr().out)["results"]
    assert first["cut_inputs"] == 2
    short = write(tmp_path / "short.jsonl", tests[2:])
    [(_, whole), *_] = hub.evaluate(["colours"], data=short)
    assert "cut_inputs" not in whole.details


def test_the_scores_of_single_examples_are_stored(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("llama"))
    own: dict[str, Any] = {"rank": 4, "epochs": 2, "dev_share": 0.0}
    tests = [{"input": f"{c} apple {k}", "output": c if k < 4 else "green"} for c in ("red", "blue") for k in range(7)]
    held = write(tmp_path / "tests.jsonl", tests)
    first = hub.add_task("colours", data(tmp_path, COLOURS, 12), eval=held, kind="choice", **own)
    (main, *others) = [stored.evaluation for stored in hub.registry.evaluations(first.ref)]
    assert main.metric == "accuracy"
    assert len(metrics.stored_row_scores(main)) == 14
    assert sum(metrics.stored_row_scores(main)) == pytest.approx(14 * main.value)
    assert all(metrics.stored_row_scores(other) == [] for other in others if other.metric != "accuracy"), "stored once"
    second = hub.update("colours", data(tmp_path, COLOURS, 4), eval=held, max_forgetting=1, **own)
    (after, *_) = [stored.evaluation for stored in hub.registry.evaluations(second.ref)]
    [row] = second.manifest["gate"]["effects"]
    assert row["correlation"] == pytest.approx(
        paired_correlation(metrics.stored_row_scores(main), metrics.stored_row_scores(after))
    )


def scored(value: float, n: int, row_scores: str | None) -> Evaluation:
    details = {} if row_scores is None else {"row_scores": row_scores}
    return Evaluation("news", "accuracy", value, n, "test.jsonl", details)


@pytest.mark.parametrize(
    ("before", "after", "correlation"),
    [
        ("1 1 1 1 0 0 0 0", "1 1 1 1 0 0 0 0", 0.75),
        ("1 1 1 1 0 0 0 0", "0 0 0 0 1 1 1 1", -1.0),
        (None, "1 1 1 1 0 0 0 0", 0.0),  # recorded before there were any
        ("1 1 1 1", "1 1 1 1 0 0 0 0", 0.0),  # on other rows
        ("0.5 1 1 0.5 0 0 0.5 0.5", "0.5 1 1 0.5 0 0 0.5 0.5", 0.25),  # of 0.25 that Wilson assumes, not 0.125
    ],
)
def test_an_effect_knows_what_two_scores_have_in_common(
    before: str | None, after: str | None, correlation: float
) -> None:
    probe = Probe(
        Task("news", "choice", labels=("a", "b"), metric="accuracy"), [Example("x", "a")] * 8, "test.jsonl", 8
    )
    assert effect(probe, scored(0.5, 8, before), scored(0.5, 8, after), "news@v1").correlation == pytest.approx(
        correlation
    )


def test_damaged_scores_of_examples_are_left_out() -> None:
    for damaged in ([1, 0], 1):
        assert sound_details({"row_scores": damaged, "sha256": "a"}) == {"sha256": "a"}
    for damaged in ("1 x", "2 1", "nan 0", "-1 1"):
        assert metrics.stored_row_scores(scored(0.5, 2, damaged)) == []
    assert metrics.stored_row_scores(scored(0.5, 3, "1 0.3333 0")) == [1.0, 0.3333, 0.0]
    assert metrics.stored_row_scores(Evaluation("news", "accuracy", 0.5, 2, details={"row_scores": None})) == []


def test_other_right_answers_count_where_the_metric_counts_them() -> None:
    gold, said, others = ["red", "red"], ["blue", "red"], [["blue"], []]
    for kind, expected in (("choice", [0.0, 1.0]), ("generation", [1.0, 1.0])):
        task = Task("t", kind, labels=("red", "blue"), metric="accuracy" if kind == "choice" else "exact_match")
        rows = metrics.row_scores(task, gold, said, others)
        assert rows == expected
        assert sum(rows) / 2 == metrics.score(task, gold, said, references=others)[task.metric]


def test_another_file_of_the_same_name_is_not_taken_for_the_old_one(
    pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("llama"))
    own: dict[str, Any] = {"rank": 4, "epochs": 1, "dev_share": 0.0}
    rows = [{"input": f"{c} apple {k}", "output": c, "other": "red"} for c in ("red", "blue") for k in range(4)]
    held = write(tmp_path / "tests.jsonl", rows)
    record = hub.add_task("colours", data(tmp_path, COLOURS, 12), eval=held, kind="choice", **own)
    probe = probe_of(hub.registry, "colours")
    assert probe is not None
    before = [stored.evaluation for stored in hub.registry.evaluations(record.ref)]
    hub.evaluate(["colours"], data=held, columns={"input": "input", "output": "other"})
    write(held, rows[::-1])
    hub.evaluate(["colours"], data=held)
    write(held, rows)
    newest = hub.registry.evaluations(record.ref)[-1].evaluation
    assert newest.data == before[0].data
    assert source_of(record, newest) != probe.sha256
    found = score_version(hub.context(), record, probe)
    assert found == before[0]
