"""The accuracy matrix against figures worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pytest

from adapterhub_cl.errors import DataError
from adapterhub_cl.evaluation.matrix import (
    AccuracyMatrix,
    any_time_average,
    average_accuracy,
    bwt,
    compare,
    forgetting,
    fwt_gem,
    fwt_sapt,
    mean_and_spread,
)

R = [[0.8, 0.2, 0.3], [0.9, 0.7, 0.4], [0.6, 0.5, 0.9]]
LOWER = [[0.8, None, None], [0.9, 0.7, None], [0.6, 0.5, 0.9]]


def test_figures_by_hand() -> None:
    assert average_accuracy(R) == pytest.approx((0.6 + 0.5 + 0.9) / 3)
    assert bwt(R) == pytest.approx(((0.6 - 0.8) + (0.5 - 0.7)) / 2)
    assert forgetting(R) == pytest.approx(((0.9 - 0.6) + (0.7 - 0.5)) / 2)  # the best, not the first
    assert fwt_gem(R, [0.1, 0.1, 0.2]) == pytest.approx(((0.2 - 0.1) + (0.4 - 0.2)) / 2)
    assert fwt_sapt(R, [0.8, 0.8, 0.6]) == pytest.approx((0.0 - 0.1 + 0.3) / 3)
    assert any_time_average(R) == pytest.approx((0.8 + (0.9 + 0.7) / 2 + (0.6 + 0.5 + 0.9) / 3) / 3)


def test_cells_that_were_not_measured() -> None:
    assert average_accuracy(LOWER) == average_accuracy(R)
    assert bwt(LOWER) == bwt(R)
    assert forgetting(LOWER) == forgetting(R)
    assert any_time_average(LOWER) == any_time_average(R)
    assert fwt_gem(LOWER, [0.1, 0.1, 0.2]) is None
    ends: list[list[float | None]] = [[0.8, None, None], [None, 0.7, None], [0.6, 0.5, 0.9]]
    assert forgetting(ends) == pytest.approx(0.2)
    assert any_time_average(ends) is None
    assert bwt([[0.8, None], [None, 0.9]]) is None
    assert forgetting([[None, None], [0.4, 0.9]]) is None
    assert average_accuracy([[0.8, None], [None, 0.9]]) is None


def test_one_task_and_an_unfinished_stream() -> None:
    assert average_accuracy([[0.8]]) == 0.8
    assert bwt([[0.8]]) is None
    assert forgetting([[0.8]]) is None
    assert fwt_gem([[0.8]], [0.5]) is None
    assert fwt_sapt([[0.8]], [0.5]) == pytest.approx(0.3)
    assert average_accuracy(LOWER[:2]) == pytest.approx(0.8)  # two of three tasks learned
    assert bwt(LOWER[:2]) == pytest.approx(0.1)
    assert forgetting(LOWER[:2]) == pytest.approx(-0.1)


def make(**options: Any) -> AccuracyMatrix:
    rows = tuple(tuple(row) for row in LOWER)
    return AccuracyMatrix(("news", "a,b", "spam"), rows, **options)


def test_json_there_and_back() -> None:
    matrix = make(
        metrics=("accuracy",) * 3, base=(0.1, 0.1, None), alone=(0.8, 0.8, 0.6), name="ewc", seconds=1.5, seed=3
    )
    row = json.loads(json.dumps(matrix.to_json()))
    assert set(row) == {
        "tasks",
        "matrix",
        "average_accuracy",
        "bwt",
        "forgetting",
        "fwt",
        "fwt_gem",
        "fwt_sapt",
        "seed",
        "any_time_average",
        "base",
        "alone",
        "name",
        "seconds",
        "metrics",
    }
    assert AccuracyMatrix.from_json(row) == matrix
    assert AccuracyMatrix.from_json({"tasks": ["a"], "matrix": [[1]], "later": 1}).average_accuracy == 1
    assert row["matrix"] == LOWER
    assert row["fwt"] is None
    assert row["fwt_sapt"] == matrix.fwt_sapt == pytest.approx(0.2 / 3)
    assert make().fwt_sapt is None
    whole = AccuracyMatrix(("a", "b"), ((0.5, 0.25), (0.5, 0.5)), base=(0.0, 0.0))
    assert whole.to_json()["fwt"] == whole.fwt_gem == 0.25
    for bad in ({"tasks": ["a"]}, {"tasks": ["a"], "matrix": 3}, {"tasks": ["a"], "matrix": [["x"]]}, []):
        with pytest.raises(DataError):
            AccuracyMatrix.from_json(bad)  # type: ignore[arg-type]


def test_csv() -> None:
    rows = list(csv.reader(io.StringIO(make().to_csv())))
    assert rows[0] == ["after", "news", "a,b", "spam"]
    assert rows[1] == ["news", "0.8", "", ""]
    assert [float(cell) for cell in rows[3][1:]] == LOWER[2]


@pytest.mark.parametrize(
    "bad", [[], [[]], [[0.1, 0.2], [0.1]], [[math.nan]], [[math.inf]], [[0.1], [0.2]], [[True]], [["0.5"]]]
)
def test_bad_shapes(bad: Any) -> None:
    for figure in (average_accuracy, bwt, forgetting, any_time_average):
        with pytest.raises(DataError):
            figure(bad)
    with pytest.raises(DataError):
        AccuracyMatrix(("a",), tuple(map(tuple, bad)))


def test_bad_companions() -> None:
    with pytest.raises(DataError, match="base has 1 scores for 3 tasks"):
        fwt_gem(R, [0.1])
    with pytest.raises(DataError, match="alone has 2"):
        make(alone=(0.1, 0.2))
    with pytest.raises(DataError, match="2 metrics"):
        make(metrics=("accuracy", "accuracy"))
    with pytest.raises(DataError, match="3 columns for 1 tasks"):
        AccuracyMatrix(("a",), ((0.1, 0.2, 0.3),))


def test_mean_and_spread() -> None:
    assert mean_and_spread([2.0, 4.0, 6.0]) == pytest.approx((4.0, 2.0, 3))
    assert mean_and_spread([2.0]) == (2.0, 0.0, 1)
    for bad in ([], [math.nan]):
        with pytest.raises(DataError):
            mean_and_spread(bad)


def test_compare_is_paired() -> None:
    # differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027, half width 4.3027 / √3
    found = compare([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (found.difference, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)
    assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)
    alone = compare([0.5], [0.25])
    assert (alone.difference, alone.low, alone.high, alone.n) == (0.25, None, None, 1)
    with pytest.raises(DataError, match="2 values against 1"):
        compare([1.0, 2.0], [1.0])
