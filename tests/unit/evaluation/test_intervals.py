"""Intervals of a drop against published and hand-worked values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.errors import DataError
from adapterhub_cl.evaluation.intervals import Z, difference_interval, mean_interval, paired_interval, significant_drop


def test_newcombes_examples() -> None:
    # Newcombe 1998, table II, method 10: cases (a), (b), (f) and (h)
    assert difference_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval(9 / 10, 10, 3 / 10, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert difference_interval(0 / 10, 10, 0 / 20, 20) == pytest.approx((-0.1611, 0.2775), abs=5e-5)
    assert difference_interval(10 / 10, 10, 0 / 10, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


shares = st.floats(0, 1)
sizes = st.integers(1, 500)


@given(before=shares, n_before=sizes, after=shares, n_after=sizes)
def test_it_holds_the_drop_and_turns_round(before: float, n_before: int, after: float, n_after: int) -> None:
    low, high = difference_interval(before, n_before, after, n_after)
    assert -1 <= low <= before - after <= high <= 1
    assert difference_interval(after, n_after, before, n_before) == pytest.approx((-high, -low))


def test_significant_drop_needs_both() -> None:
    assert significant_drop(0.8, 70, 0.6, 80, limit=0.1)
    assert not significant_drop(0.8, 70, 0.6, 80, limit=0.25), "within the limit"
    assert not significant_drop(0.8, 10, 0.6, 10, limit=0.1), "too few examples"
    assert not significant_drop(0.6, 500, 0.8, 500, limit=0.0), "a gain"
    assert not significant_drop(0.6, 500, 0.6, 500, limit=0.0)


def test_paired_interval() -> None:
    # differences 1, 0, 0, 0 fifty times over: mean 0.25, variance 0.1875 · 200/199
    before, after = [1.0] * 200, [0.0, 1.0, 1.0, 1.0] * 50
    half = Z * math.sqrt(0.1875 * 200 / 199 / 200) + 1 / 400
    assert paired_interval(before, after) == pytest.approx((0.25 - half, 0.25 + half))
    assert paired_interval([0.3, 1.0], [0.3, 1.0]) == (0.0, 0.0)
    assert paired_interval([1.0], [0.0]) == (-1.0, 1.0)
    assert paired_interval([1.0, 1.0], [0.0, 0.0]) == (0.75, 1.0)


def test_what_is_refused() -> None:
    for bad in ((1.2, 5, 0.5, 5), (0.5, 5, -0.1, 5), (0.5, 0, 0.5, 5), (math.nan, 5, 0.5, 5)):
        with pytest.raises(DataError):
            difference_interval(*bad)
    for before, after in (([], []), ([1.0], []), ([2.0], [0.0])):
        with pytest.raises(DataError):
            paired_interval(before, after)


@given(before=shares, after=shares, n=sizes)
def test_the_mean_of_one_drop_is_that_drop(before: float, after: float, n: int) -> None:
    single = (before - after, difference_interval(before, n, after, n))
    assert mean_interval([single]) == pytest.approx(single[1])


def test_four_equal_drops_halve_the_interval() -> None:
    drop, (low, high) = 0.1, difference_interval(0.9, 60, 0.8, 60)
    found = mean_interval([(drop, (low, high))] * 4)
    assert found == pytest.approx((drop - (drop - low) / 2, drop + (high - drop) / 2))
    with pytest.raises(DataError):
        mean_interval([])
