"""The demo's pieces; the whole of it runs in the slow tier and by `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub_cl import AdapterHub, demo
from adapterhub_cl.demo import steps
from adapterhub_cl.demo.place import MADE, made_beside
from adapterhub_cl.errors import UsageError
from adapterhub_cl.registry import HubFile
from adapterhub_cl.types import Prediction, Task


def test_the_tasks_are_those_whose_data_are_there() -> None:
    assert list(demo.ABOUT) == list(steps.TASKS)
    assert list(MADE)[:4] == list(steps.TASKS)
    assert {path.name.split(".")[0] for path in demo.DATA.glob("*.jsonl")} == set(steps.TASKS)
    for task in steps.TASKS:
        assert all(example.answer for example in steps.held_out(task))


def test_only_what_a_demo_made_is_replaced_and_only_when_all_is_done(tmp_path: Path) -> None:
    place = tmp_path / "demo-hub"
    with made_beside(place) as first:
        assert not place.exists()
        (first.folder / "routers").mkdir()
    with pytest.raises(KeyboardInterrupt), made_beside(place):
        raise KeyboardInterrupt
    assert (place / "routers").is_dir()
    with made_beside(place) as one, made_beside(tmp_path / "other") as two:
        assert one.folder != two.folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-hub", "other"]
    assert not (place / "routers").exists()
    hub = AdapterHub.open(place)
    assert HubFile.read(hub.folder).defaults == {"demo": True}


def test_what_a_killed_demo_left_goes(tmp_path: Path) -> None:
    left = tmp_path / ".demo-hub.making-999999999"
    left.mkdir()
    with made_beside(tmp_path / "demo-hub"):
        assert not left.exists()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("NOTES.txt", "has NOTES.txt"),
        ("adapters/mine/v1/adapter_model.safetensors", "has adapters/mine"),
        ("adapters/tickets/v2/adapter_model.safetensors", "has adapters/tickets/v2"),
        ("adapters/all/v3/adapter_model.safetensors", "has adapters/all/v3"),
    ],
)
def test_what_a_user_added_is_kept(more: str, why: str, tmp_path: Path) -> None:
    place = tmp_path / "demo-hub"
    with made_beside(place):
        pass
    (place / more).parent.mkdir(parents=True, exist_ok=True)
    (place / more).write_text("hard won")
    with pytest.raises(UsageError, match=why) as caught:
        demo.run(place, tell=print)
    assert (place / more).read_text() == "hard won"
    assert "cl-adapter demo FOLDER" in caught.value.hint


@pytest.mark.parametrize("mark", ['"no"', "false", "1"])
def test_a_hub_of_ones_own_is_not_replaced(mark: str, tmp_path: Path) -> None:
    place = tmp_path / "hub"
    with made_beside(place):
        pass
    text = (place / "hub.toml").read_text()
    (place / "hub.toml").write_text(text.replace("demo = true", f"demo = {mark}"))
    with pytest.raises(UsageError, match="a hub of your own"):
        demo.run(place, tell=print)
    assert (place / "hub.toml").exists()


def test_a_place_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name in ("file", "full", "link"):
        with pytest.raises(UsageError, match="already exists"):
            demo.run(tmp_path / name, tell=print)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UsageError, match="the one you are in"):
        demo.run(Path(), tell=print)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="demo runs in one process"):
        demo.run(tmp_path / "new", tell=print)


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
    for name in ("hub-a", "hub-b"):
        command = [sys.executable, "-m", "cl_adapter", "demo", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        told.append(done.stdout.replace(f" {name} ", " HUB "))
    without_time = ["\n".join(line for line in one.splitlines() if "Done in" not in line) for one in told]
    assert without_time[0] == without_time[1]
    assert max(len(line) for line in told[0].splitlines()) <= 80
    hub = AdapterHub.open(tmp_path / "hub-a")
    assert hub.verify() == []
    assert {r.ref for r in hub.list(all_versions=True)} >= {"tickets@v1", "facts@v1", "sum@v1", "all@v1", "all@v2"}
    assert hub.get("sum@v1").status == "rejected"
    assert set(hub.registry.serving()) == set(steps.TASKS)
    found = json.loads(
        subprocess.run(
            [sys.executable, "-m", "cl_adapter", "--json", "demo", "hub-b"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        ).stdout
    )  # fmt: skip
    assert all(found["isolated"][task] > found["base"][task] + 0.1 for task in steps.TASKS)
    assert found["forgetting"]["naive"] > 0.1
    assert found["routing"] > 0.8
    assert min(found["distilled"].values()) >= demo.LEAST > min(found["merged"].values())
