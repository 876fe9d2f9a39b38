"""The demo's pieces; the whole of it runs in the slow tier and by `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl import AdapterHub, demo
from adapterhub_cl.demo import steps
from adapterhub_cl.errors import UsageError
from adapterhub_cl.registry import HubFile, Registry
from adapterhub_cl.types import Prediction, Task


def test_the_tasks_are_those_whose_data_are_there() -> None:
    assert list(demo.ABOUT) == list(steps.TASKS)
    assert {path.name.split(".")[0] for path in demo.DATA.glob("*.jsonl")} == set(steps.TASKS)
    for task in steps.TASKS:
        assert all(example.answer for example in steps.held_out(task))


def test_a_hub_of_ones_own_is_not_replaced(tmp_path: Path, load_pico: Any, pico_path: Any) -> None:
    steps.fresh_hub(tmp_path / "demo-hub")
    (tmp_path / "demo-hub" / "left").touch()
    again = steps.fresh_hub(tmp_path / "demo-hub")
    assert not (again.folder / "left").exists()
    assert HubFile.read(again.folder).defaults == {"demo": True}
    Registry.create(tmp_path / "mine", again.base)
    with pytest.raises(UsageError, match="a hub of your own") as caught:
        demo.run(tmp_path / "mine", tell=print)
    assert "cl-adapter demo FOLDER" in caught.value.hint


def test_a_score_is_of_all_unseen_texts(tmp_path: Path) -> None:
    hub = steps.fresh_hub(tmp_path / "hub")
    gold = steps.held_out("reviews")
    hub.registry.put_task(Task("reviews", "choice", labels=("bad", "good"), metric="accuracy"))

    def answers(right: int) -> list[Prediction]:
        wrong = {"good": "bad", "bad": "good"}
        said = [e.answer or "" for e in gold]
        return [
            Prediction(e.input, "reviews@v1", one if k < right else wrong[one], 1.0)
            for k, (e, one) in enumerate(zip(gold, said, strict=True))
        ]

    assert steps.main_score(hub, "reviews", answers(len(gold))) == 1.0
    assert steps.main_score(hub, "reviews", answers(len(gold) // 4)) == 0.25


def test_lines_fit_the_screen() -> None:
    assert demo._cells({"tickets": 0.5, "facts": 1.0}) == " " * 7 + "50%" + " " * 20 + " " * 6 + "100%"
    assert (demo._cut("a" * 9, 9), demo._cut("a" * 10, 9)) == ("a" * 9, "a" * 8 + "…")


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    """Two runs, in processes of their own, tell the same in 80 columns; the figures say what they should."""
    told = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "cl_adapter", "demo", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        told.append(done.stdout.replace(f" {name} ", " HUB "))
    without_time = ["\n".join(line for line in one.splitlines() if "Done in" not in line) for one in told]
    assert without_time[0] == without_time[1]
    assert max(len(line) for line in told[0].splitlines()) <= 80
    hub = AdapterHub.open(tmp_path / "one")
    assert hub.verify() == []
    assert {r.ref for r in hub.list(all_versions=True)} >= {"tickets@v1", "facts@v1", "sum@v1", "all@v1", "all@v2"}
    assert hub.get("sum@v1").status == "rejected"
    assert set(hub.registry.serving()) == set(steps.TASKS)
    found = json.loads(
        subprocess.run(
            [sys.executable, "-m", "cl_adapter", "--json", "demo", "two"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        ).stdout
    )  # fmt: skip
    assert all(found["isolated"][task] > found["base"][task] + 0.1 for task in steps.TASKS)
    assert found["forgetting"]["naive"] > 0.1
    assert found["routing"] > 0.8
    assert min(found["distilled"].values()) >= demo.LEAST > min(found["merged"].values())
