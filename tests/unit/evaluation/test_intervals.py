"""Intervals of a drop against published and hand-worked values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.errors import DataError
from adapterhub_cl.evaluation.intervals import (
    Z,
    difference_interval,
    mean_interval,
    paired_correlation,
    paired_interval,
)


def test_newcombes_examples() -> None:
    # Newcombe 1998, table II, method 10: cases (a), (b), (f) and (h)
    assert difference_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval(9 / 10, 10, 3 / 10, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert difference_interval(0 / 10, 10, 0 / 20, 20) == pytest.approx((-0.1611, 0.2775), abs=5e-5)
    assert difference_interval(10 / 10, 10, 0 / 10, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


def table(both: int, lost: int, gained: int, neither: int) -> tuple[list[float], list[float]]:
    """Scores of the same examples before and after, from the four counts of a paired table."""
    before = [1.0] * (both + lost) + [0.0] * (gained + neither)
    return before, [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998, Statistics in Medicine 17, 2635, table II, method 10
        ((1, 1, 7, 12), (-0.5069, -0.0256)),  # Bentur et al. 2009, as in Fagerland et al. 2017, chapter 8
    ],
)
def test_published_paired_intervals(counts: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    before, after = table(*counts)
    n, correlation = len(before), paired_correlation(before, after)
    found = difference_interval(sum(before) / n, n, sum(after) / n, n, correlation)
    assert found == pytest.approx(interval, abs=5e-5)


def test_paired_correlation() -> None:
    assert paired_correlation(*table(25, 25, 25, 25)) == 0.0
    assert paired_correlation(*table(0, 30, 70, 0)) == pytest.approx(-1.0), "no correction makes it less than it is"
    before, after = table(50, 0, 0, 50)
    assert paired_correlation(before, after) == pytest.approx((0.25 - 1 / 200) / 0.25)
    assert paired_correlation([0.3, 0.3], [0.1, 0.9]) == paired_correlation([0.1, 0.9], [0.3, 0.3]) == 0.0
    assert paired_correlation([1.0, 1.0], [0.1, 0.9]) == paired_correlation([0.1, 0.9], [0.0, 0.0]) == 0.0
    assert -1 <= paired_correlation([1e-9, 0.0], [0.0, 1e-9]) <= 1


def test_graded_scores_are_not_known_too_well() -> None:
    # one version gives graded scores, the other all or nothing: what differs must not be cancelled as common
    before, after = [0.45, 0.55] * 50, [0.0, 1.0] * 50
    correlation = paired_correlation(before, after)
    assert correlation == pytest.approx((0.025 - 1 / 200) / 0.25)
    low, high = difference_interval(0.5, 100, 0.5, 100, correlation)
    assert low < -0.1 < 0.1 < high


def test_many_comparisons_need_wider_intervals() -> None:
    one, twelve = (difference_interval(0.9, 100, 0.84, 100, 0.75, count) for count in (1, 12))
    assert one[0] > 0 > twelve[0]
    assert twelve[1] > one[1]


def test_a_drop_of_the_same_examples_is_known_better() -> None:
    # twelve right answers of 180 are lost and none is gained: independent samples of 200 would leave room for chance
    before, after = table(168, 12, 0, 20)
    assert difference_interval(0.9, 200, 0.84, 200)[0] < 0
    assert difference_interval(0.9, 200, 0.84, 200, paired_correlation(before, after))[0] > 0.02


shares = st.floats(0, 1)
sizes = st.integers(1, 500)


@given(before=shares, n_before=sizes, after=shares, n_after=sizes, correlation=st.floats(-1, 1))
def test_it_holds_the_drop_and_turns_round(
    before: float, n_before: int, after: float, n_after: int, correlation: float
) -> None:
    low, high = difference_interval(before, n_before, after, n_after, correlation)
    assert -1 <= low <= before - after <= high <= 1
    assert difference_interval(after, n_after, before, n_before, correlation) == pytest.approx((-high, -low))


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=60))
def test_a_correlation_is_one(pairs: list[tuple[float, float]]) -> None:
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    assert -1 <= paired_correlation(before, after) <= 1
    assert paired_correlation(after, before) == pytest.approx(paired_correlation(before, after), abs=1e-9)


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
        with pytest.raises(DataError):
            paired_correlation(before, after)
    for damaged in (math.nan, 7.0, "0.5", None):
        with pytest.raises(DataError):
            difference_interval(0.9, 20, 0.87, 20, damaged)  # type: ignore[arg-type]


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
