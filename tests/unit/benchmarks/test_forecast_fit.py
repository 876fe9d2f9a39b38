"""The benchmark of forecasts: its fit finds what is there, and judges it on streams that it was not fitted to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import forget

PLACE = Path(__file__).parents[3] / "examples/benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    forget()
    monkeypatch.syspath_prepend(str(PLACE))
    yield __import__("forecast_fit")
    forget()


def rows(module: Any, told: bool) -> list[dict[str, Any]]:
    """Steps whose drop follows from the samples that became unlikely, or from nothing at all."""
    draw = random.Random(0)
    found = []
    for stream in module.STREAMS:
        for k in range(8):
            signs = {
                "before": 0.9, "chance": 0.25, "loss_rise": 0.0, "likelihood_drop": 0.0, "halved": draw.random(),
                "divergence": draw.random(), "nearness": draw.random(), "overlap": draw.random(), "unlearned": 1.0,
                "path": 0.1, "reviewed": 0.0, "lost": draw.uniform(-0.1, 0.1), "held_drop": draw.random(),
            }  # fmt: skip
            drop = (0.65 * signs["halved"] if told else 0.65 * draw.random()) + draw.gauss(0, 0.02)
            found.append({"stream": stream, "learned": "new", "task": f"t{k}", "signs": signs, "drop": drop, "n": 200})
    return found


def test_the_fit_finds_what_is_there_and_nothing_else(module: Any) -> None:
    good = module.figures(module.judged(rows(module, True)))
    assert good["spearman"] > 0.95
    assert good["coverage"] >= 0.8
    assert good["width"] < 0.2
    none = module.figures(module.judged(rows(module, False)))
    assert abs(none["spearman"]) < 0.4
    assert none["coverage"] >= 0.8, "intervals are as wide as the error"
    assert none["width"] > 3 * good["width"]


def test_streams_that_begin_alike_are_left_out_together(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    inner = module.fitted_to

    def noted(rows: Any, names: Any = ()) -> Any:
        seen.append({module.group_of(row) for row in rows})
        return inner(rows, names)

    monkeypatch.setattr(module, "fitted_to", noted)
    every = rows(module, True)
    module.judged(every)
    groups = {module.group_of(row) for row in every}
    assert "four" in groups
    assert len(seen) == len(groups) < len(module.STREAMS)
    assert all(len(groups - own) == 1 for own in seen)
