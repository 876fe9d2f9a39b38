"""`inbox` and `learn` as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_support import Cl, Said

from adapterhub_cl.errors import LearnsElsewhere, StorageError, TrainingError, TrainingInterrupted
from adapterhub_cl.loop.learn_steps import LearnStep
from adapterhub_cl.traffic.journal import Journal, KeptAnswer
from adapterhub_cl.types import Example


@pytest.fixture
def hub(training_run: tuple[Path, Said], tmp_path: Path) -> Path:
    """A copy of the trained hub, with twelve kept answers."""
    folder = Path(shutil.copytree(training_run[0], tmp_path / "own"))
    Journal(folder).keep(
        [
            KeptAnswer(
                f"pred-{k}", f"2026-11-{k + 1:02}T10:00:00.000+00:00", "mood", "mood@v1",
                Example(f"a text \x1b[31m number {k}"), "positive", k / 12, 0.9, False, f"talk {k}", "jane",
            )
            for k in range(12)
        ]
    )  # fmt: skip
    return folder


def test_an_empty_inbox_says_how_to_fill_it(cl: Cl, training_run: tuple[Path, Said]) -> None:
    said = cl("inbox", "--hub", training_run[0])
    assert said.code == 0
    assert "serve --log" in said.err
    assert cl("inbox", "--hub", training_run[0], "--json").json["tasks"] == []
    said = cl("learn", "--dry-run", "--hub", training_run[0])
    assert said.code == 0
    assert "nothing to do" in said.err


def test_export_label_say_and_look(cl: Cl, hub: Path, tmp_path: Path) -> None:
    said = cl("inbox", "--hub", hub)
    assert said.code == 0
    assert "worth labelling" in said.out
    assert "pred-0" in said.out
    assert "\x1b" not in said.out
    file = tmp_path / "rows.jsonl"
    assert cl("inbox", "--export", file, "--hub", hub).code == 0
    assert cl("inbox", "--export", file, "--hub", hub).code == 2  # it is there already
    inside = cl("inbox", "--export", hub / "rows.jsonl", "--hub", hub)
    assert (inside.code, "inside the hub" in inside.err) == (2, True)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12
    rows[0]["label"], rows[1]["correct"], rows[2]["thumb"] = "negative", True, "down"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = cl("inbox", "--say", file, "--hub", hub, "--json")
    assert said.json == {"path": str(file), "said": 3, "without": 9}
    [task] = cl("inbox", "--no-groups", "--hub", hub, "--json").json["tasks"]
    assert (task["judged"], task["rows"]) == (3, 2)
    assert {row["answer"] for row in task["corrections"]} == {"negative", None}
    again = tmp_path / "again.jsonl"
    cl("inbox", "--export", again, "--hub", hub)
    said = cl("inbox", "--say", again, "--hub", hub, "--json")
    assert said.json["said"] == 0  # what was said already changes nothing
    said = cl("learn", "--dry-run", "--enough", "2", "--hub", hub, "--json")
    assert said.json[0]["did"] == "would learn"


def test_a_file_with_a_bad_row_changes_nothing(cl: Cl, hub: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for bad, word in (
        ({"id": "pred-1", "label": "no such label"}, "row 2"),
        ({"id": "pred-99", "correct": True}, "unknown answer"),
        ({"label": "negative"}, "has no id"),
    ):
        file.write_text(json.dumps({"id": "pred-0", "label": "negative"}) + "\n" + json.dumps(bad) + "\n")
        said = cl("inbox", "--say", file, "--hub", hub)
        assert said.code != 0
        assert word in said.err, said.err
        assert Journal(hub).judged() == []


def test_a_task_that_is_unknown_or_means_nothing_is_refused(cl: Cl, hub: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for words in (("modo",), ("modo", "--export", file), ("modo", "--drop", "--yes")):
        said = cl("inbox", *words, "--hub", hub)
        assert said.code == 2
        assert "unknown task 'modo'" in said.err
    assert not file.exists()
    file.write_text('{"id": "pred-0", "correct": true}\n')
    for words in (("mood", "--say", file), ("mood", "--withdraw", "pred-0")):
        said = cl("inbox", *words, "--hub", hub)
        assert said.code == 2
        assert "takes no TASK" in said.err
    assert Journal(hub).judged() == []


def test_dropping(cl: Cl, hub: Path) -> None:
    assert cl("inbox", "--drop", "--hub", hub).code == 2
    assert cl("inbox", "--drop", "--before", "yesterday", "--hub", hub).code == 2
    assert cl("inbox", "--before", "2026-11-05", "--hub", hub).code == 2
    assert cl("inbox", "--drop", "--before", "2026-11-05", "--hub", hub).code == 2  # there is nobody to ask
    assert cl("inbox", "--drop", "--before", "20260101", "--yes", "--hub", hub, "--json").json == {"dropped": 0}
    said = cl("inbox", "--drop", "--before", "2026-W45-4", "--yes", "--hub", hub, "--json")  # 5 November
    assert said.json == {"dropped": 4}
    assert cl("inbox", "mood", "--drop", "--yes", "--hub", hub, "--json").json == {"dropped": 8}


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (LearnsElsewhere("another process learns", "it goes on there"), 0, "note: another process learns"),
        (TrainingInterrupted("stopped", "run it again"), 130, "stopped"),
        (TrainingError("the loss is not finite", "a lower rate"), 1, "not finite"),
    ],
)
def test_only_another_learn_is_no_failure(
    cl: Cl, hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, told: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("adapterhub_cl.loop.learn_call.learn", fail)
    said = cl("learn", "--hub", hub)
    assert said.code == code
    assert told in said.err
    assert "nothing to do" not in said.err


def test_a_watch_outlives_a_full_disk_and_a_failed_step_is_a_failure(
    cl: Cl, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def learn(*_: object, **__: object) -> list[LearnStep]:
        looks.append(1)
        if len(looks) == 1:
            raise StorageError("no space left on the disk", "free some")
        if len(looks) == 3:
            raise KeyboardInterrupt
        return [LearnStep("mood", "failed", "the loss is no longer a number")]

    monkeypatch.setattr("adapterhub_cl.loop.learn_call.learn", learn)
    monkeypatch.setattr("adapterhub_cl.loop.learn_call.time.sleep", lambda _: None)
    said = cl("learn", "--watch", "--every", "1", "--hub", hub)
    assert (said.code, len(looks)) == (0, 3)
    assert "error: no space left on the disk; free some" in said.err
    assert "mood: failed: the loss is no longer a number" in said.out
    looks[:] = [1]
    assert cl("learn", "--hub", hub).code == 1


def test_learn_refuses_what_makes_no_sense(cl: Cl, hub: Path) -> None:
    assert cl("learn", "--canary", "2", "--hub", hub).code == 2
    assert cl("learn", "--watch", "--dry-run", "--hub", hub).code == 2
    assert cl("learn", "--task", "nothing", "--hub", hub).code == 2
    said = cl("learn", "--task", "mood", "--hub", hub)
    assert said.code == 0
    assert "waiting" in said.out
