"""Routing on the embedded base: a text without a task finds it; a task that comes is added, one that goes is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub_cl import AdapterHub

DEMO = Path(__file__).parents[2] / "adapterhub_cl/demo"
COUNT = 25

pytestmark = pytest.mark.integration


def held_out(task: str) -> list[str]:
    rows = [json.loads(line) for line in (DEMO / f"{task}.test.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows[:COUNT]]


def learn(hub: AdapterHub, task: str, folder: Path) -> None:
    """Learn a task hastily: the router knows it by its replay samples, whatever the adapter is worth."""
    lines = (DEMO / f"{task}.train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:120]
    data = folder / f"{task}.jsonl"
    data.write_text("".join(lines), encoding="utf-8")
    hub.add_task(task, data, epochs=1, rank=4, max_length=48, replay="balanced:100")


@pytest.fixture
def hub(trained_hub: Callable[..., Path], tmp_path: Path) -> AdapterHub:
    """A hub on the 4-bit base with two learned tasks, a new copy for each test: several of them change it."""

    def train(folder: Path) -> None:
        hub = AdapterHub.init(folder, "tiny")
        for task in ("tickets", "commands"):
            learn(hub, task, tmp_path)

    return AdapterHub.open(trained_hub("two-routed-tasks", train))


def share_right(hub: AdapterHub, *tasks: str) -> float:
    found = hub.route([text for task in tasks for text in held_out(task)])
    wanted = [task for task in tasks for _ in range(COUNT)]
    return sum(next(iter(one.tasks)) == task for one, task in zip(found, wanted, strict=True)) / len(wanted)


def how_opened(hub: AdapterHub) -> tuple[str, list[str], int]:
    """How the router of a new engine was got, which tasks it had to learn or unlearn, and how many texts it read."""
    with hub.engine() as engine:
        engine.prepare()
        opened = engine._worker.decider.opened
        assert opened is not None
        return opened.how, opened.changed, opened.embedded


def test_a_text_without_a_task_finds_it(hub: AdapterHub) -> None:
    texts = [*held_out("tickets"), *held_out("commands")]
    found = hub.predict(texts, batch_size=16)
    right = [one.task == name for one, name in zip(found, ["tickets"] * COUNT + ["commands"] * COUNT, strict=True)]
    assert sum(right) / len(right) >= 0.9
    for one in found:
        assert one.adapter == (f"{one.task}@v1" if one.task else "base")
        if one.task:
            assert one.prediction in hub.registry.task(one.task).labels
    named = hub.predict(texts[:COUNT], task="tickets")
    for one, other in zip(found, named, strict=False):  # the mixed batch answers as the adapter alone
        if one.task == "tickets":
            assert one.confidence == pytest.approx(other.confidence, abs=0.03)


def test_what_was_fitted_is_loaded_in_a_new_process(hub: AdapterHub) -> None:
    code = (
        "import sys; from adapterhub_cl import AdapterHub\n"
        "with AdapterHub.open(sys.argv[1]).engine() as engine:\n"
        "    engine.prepare(); opened = engine._worker.decider.opened\n"
        "    print(opened.how, opened.embedded, *(next(iter(r.tasks)) for r in engine.route(sys.argv[2:])))"
    )
    texts = [held_out("tickets")[0], held_out("commands")[0]]
    right = [next(iter(one.tasks)) for one in hub.route(texts)]
    argv = [sys.executable, "-c", code, str(hub.folder), *texts]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["loaded", "0", *right]


def test_a_third_task_is_added_to_what_is_known(hub: AdapterHub, tmp_path: Path) -> None:
    how_opened(hub)
    learn(hub, "reviews", tmp_path)
    how, changed, embedded = how_opened(hub)
    assert (how, changed) == ("refreshed", ["reviews"])
    assert 100 <= embedded <= 200  # its own samples, in both forms
    assert how_opened(hub) == ("loaded", [], 0)
    assert share_right(hub, "tickets", "commands", "reviews") >= 0.75  # 0.84 with a hundred short samples of each


def test_a_forgotten_task_leaves_nothing_in_the_routers(hub: AdapterHub) -> None:
    routers = hub.folder / "routers"
    hub.route(["fit it"])
    sample = json.loads((hub.path("tickets") / "replay.jsonl").read_text(encoding="utf-8").splitlines()[0])["input"]
    content = hub.get("tickets").manifest["files"]["replay.jsonl"]["sha256"]
    before = {path: path.read_bytes() for path in routers.rglob("*") if path.is_file()}
    traces = [b"tickets", sample.encode(), content.encode(), bytes.fromhex(content)]
    assert any(b"tickets" in data for data in before.values())
    assert any(content.encode() in data for data in before.values())
    hub.forget_task("tickets")
    hub.route(held_out("commands")[:2])  # and none of it comes back when the router is fitted again
    after = {path: path.read_bytes() for path in routers.rglob("*") if path.is_file()}
    assert after
    for path, data in after.items():
        assert not any(trace in data or trace.decode("latin-1") in str(path) for trace in traces), path
    mine = [path for path, data in before.items() if content.encode() in data and path.suffix == ".safetensors"]
    assert mine
    assert not any(path.exists() for path in mine)
    assert hub.prove_forgotten("tickets").ok
    assert all("tickets" not in one.tasks for one in hub.route(held_out("tickets"), top_k=9))
