"""The page of the settings benchmark: differences on the same task and seed, and the command that makes its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import forget

PLACE = Path(__file__).parents[3] / "examples/benchmarks"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    forget()
    monkeypatch.syspath_prepend(str(PLACE))
    yield __import__("settings_page").page
    forget()


def row(arm: str, task: str, seed: int, score: float, **more: Any) -> dict[str, Any]:
    return {"arm": arm, "task": task, "seed": seed, "rows": 60, "score": score, "seconds": 10.0, **more}


def test_an_arm_is_compared_on_the_same_task_and_seed(page: Callable[..., str]) -> None:
    rows = [
        row("default", "sciq", 0, 0.10, loss=2.0, machine="a Xeon"),
        row("default", "emotion", 0, 0.50, loss=1.0, machine="a Xeon"),
        row("default", "emotion", 1, 0.90, loss=1.0, machine="a Xeon"),
        row("script", "sciq", 0, 0.14, machine="an EPYC"),
        row("script", "emotion", 0, 0.52, machine="an EPYC"),
    ]
    arms, tasks = ("default", "script", "other"), ("emotion", "sciq", "qqp")
    told = {"name": "n", "title": "T", "note": "Read this.", "against": "default"}
    text = page(rows, **told, arms=arms, tasks=tasks, free=("sciq", "talks"))
    lines = text.splitlines()
    assert lines[:5] == ["# T", "", "a Xeon; an EPYC.", "", "Read this."]
    (script,) = (line for line in lines if line.startswith("| script | 2 |"))
    cells = [cell.strip() for cell in script.strip("|").split("|")]
    assert cells[2:5] == ["–", "–", "–"], "the script tells no loss"
    assert cells[5] == "+3.0"
    assert "| script | 52.0 | 14.0 |" in lines
    assert "ROUGE-L for sciq and the share" in text
    assert "talks" not in text
    assert '--rows 60 --tasks "emotion; sciq" --arms "default; script" --seeds 2' in text
