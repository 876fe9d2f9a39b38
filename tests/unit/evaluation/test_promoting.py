"""`promote`: what a refusal leaves, and what a version that was refused when it was made brings with it."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import GateRefused, StorageError
from adapterhub_cl.evaluation import promoting
from adapterhub_cl.evaluation.gate import Effect
from adapterhub_cl.registry import Registry, writes
from adapterhub_cl.types import BaseInfo, Task

NEWS = Task("news", "choice", labels=("a", "b"), metric="accuracy")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Two versions of a task; the second is measured to be much worse."""
    worse = [Effect("news", "accuracy", 0.9, 0.3, 100, "news.test.jsonl", "news@v1")]
    monkeypatch.setattr(promoting, "effects_of", lambda *_: worse)
    registry = Registry.create(tmp_path / "hub", BaseInfo("tiny", "f" * 64, quantization="none"))
    for task, status in ((NEWS, "active"), (replace(NEWS, labels=("a", "b", "c"), prompt_format="alpaca"), "rejected")):
        with registry.new_draft("news") as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
            registry.publish(draft, {"kind": "trained", "rank": 2, "status": status}, task=task, verb="add-task")
    return registry


def promote(hub: Registry, limit: float | None) -> Any:
    return promoting.promote(Hub(hub, lambda: None), "news@v2", limit)  # type: ignore[arg-type,return-value]


def test_a_refusal_is_logged(hub: Registry) -> None:
    with pytest.raises(GateRefused, match=r": news 0\.900"):
        promote(hub, None)
    (event, *_) = hub.events("news")
    assert (event.verb, event.ref, event.detail["limit"]) == ("promote-refused", "news@v2", 0.02)
    row = {"task": "news", "metric": "accuracy", "before": 0.9, "after": 0.3, "n": 100, "answered_by": "news@v1"}
    row["correlation"] = 0.0
    assert event.detail["refused"] == [row]
    assert hub.serving() == {"news": "news@v1"}


def test_a_hub_that_cannot_be_written_does_not_hide_the_refusal(hub: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("read-only")

    monkeypatch.setattr(hub, "add_event", refuse)
    with pytest.raises(GateRefused):
        promote(hub, None)


def test_what_is_let_pass_brings_its_task_with_it(hub: Registry) -> None:
    assert hub.task("news") == NEWS
    promote(hub, 1.0)
    assert hub.serving() == {"news": "news@v2"}
    assert (hub.task("news").labels, hub.task("news").prompt_format) == (("a", "b", "c"), "alpaca")


def test_tasks_that_drop_together_are_refused_and_logged(hub: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    drops = [Effect(task, "accuracy", 0.85, 0.72, 60, "x.jsonl", f"{task}@v1") for task in ("news", "a", "b", "c")]
    assert not any(drop.over(0.02) for drop in drops)
    monkeypatch.setattr(promoting, "effects_of", lambda *_: drops)
    with pytest.raises(
        GateRefused, match=r"refused .*: 4 tasks drop by 0\.130 on average \(95 % interval 0\.\d+ to 0\.\d+\)"
    ):
        promote(hub, None)
    (event, *_) = hub.events("news")
    assert event.detail["together"]["tasks"] == 4
    assert len(event.detail["refused"]) == 4
    assert hub.serving() == {"news": "news@v1"}


def two_tasks_one_student(tmp_path: Path) -> Registry:
    """Tasks a and b, each with a version of its own, and a version of neither that would take both over."""
    registry = Registry.create(tmp_path / "two", BaseInfo("tiny", "f" * 64, quantization="none"))
    for name, given in (("a", {}), ("b", {}), ("both", {"kind": "merged", "status": "rejected"})):
        with registry.new_draft(name) as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"weights of " + name.encode())
            task = None if given else Task(name, "choice", labels=("x", "y"), metric="accuracy")
            manifest = {"rank": 2, "takes_over": ["a", "b"] if given else [], **given}
            registry.publish(draft, manifest, task=task, serve=not given, verb="add-task")
    return registry


def test_a_promotion_that_is_stopped_moves_no_task_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = two_tasks_one_student(tmp_path)
    before = (hub.aliases(), hub.serving(), hub.get("both@v1").status)
    done = ({**before[0], "both": {"latest": 1, "production": 1}}, {"a": "both@v1", "b": "both@v1"}, "active")
    steps = ("set_status", "move_alias", "set_serving", "add_event")
    counted = dict.fromkeys(steps, 0)
    for step in steps:
        write = getattr(writes, step)

        def count(*given: Any, step: str = step, write: Any = write) -> None:
            counted[step] += 1
            write(*given)

        monkeypatch.setattr(writes, step, count)
    stopped = [(step, nth) for step, most in {"set_status": 1, "move_alias": 2, "set_serving": 2}.items()
               for nth in range(1, most + 1)]  # fmt: skip
    for step, nth in [*stopped, ("add_event", 1), ("add_event", 3)]:
        counted.update(dict.fromkeys(steps, 0))
        with monkeypatch.context() as patch:
            write = getattr(writes, step)

            def full(*given: Any, step: str = step, nth: int = nth, write: Any = write) -> None:
                if counted[step] + 1 == nth:
                    raise sqlite3.OperationalError("database or disk is full")
                write(*given)

            patch.setattr(writes, step, full)
            with pytest.raises(StorageError, match="nothing was changed"):
                hub.promote("both@v1")
        assert (hub.aliases(), hub.serving(), hub.get("both@v1").status) == before
        assert hub.verify() == []
    hub.promote("both@v1")
    assert (hub.aliases(), hub.serving(), hub.get("both@v1").status) == done
    hub.rollback("both@production")
    assert hub.serving() == before[1]
