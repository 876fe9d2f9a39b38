"""The decision on a canary."""

from __future__ import annotations

import random

import pytest
from traffic_support import judged

from adapterhub_cl.loop.verdict import PROMOTE, ROLL_BACK, WAIT, RightCount, decide, decide_late, reliable


@pytest.mark.parametrize(
    ("canary", "beside", "does"),
    [
        ((0, 0), (100, 100), WAIT),
        ((5, 5), (90, 100), WAIT),
        ((20, 20), (0, 0), WAIT),  # nothing to compare with
        ((18, 20), (90, 100), PROMOTE),
        ((20, 20), (10, 100), PROMOTE),
        ((17, 20), (90, 100), PROMOTE),  # five points lower
        ((16, 20), (90, 100), WAIT),  # perhaps by chance
        ((48, 60), (90, 100), ROLL_BACK),  # chance has had its time
        ((2, 10), (90, 100), ROLL_BACK),  # plainly worse, before there are enough
        ((0, 3), (99, 100), ROLL_BACK),
    ],
)
def test_decisions(canary: tuple[int, int], beside: tuple[int, int], does: str) -> None:
    decided, why = decide(RightCount(*canary), RightCount(*beside), 20)
    assert decided == does
    assert f"{canary[0]} of {canary[1]} right" in why


@pytest.mark.parametrize(
    ("canary", "beside", "does"),
    [
        ((18, 20), (90, 100), WAIT),  # as good, but what users say may be wrong
        ((54, 60), (90, 100), PROMOTE),  # as good for long enough
        ((19, 20), (50, 100), PROMOTE),  # drift that the canary has learned
        ((0, 20), (6, 100), WAIT),
        ((2, 20), (50, 100), ROLL_BACK),
    ],
)
def test_where_far_more_is_wrong_than_expected(canary: tuple[int, int], beside: tuple[int, int], does: str) -> None:
    assert decide(RightCount(*canary), RightCount(*beside), 20, odd=True)[0] == does


def test_a_time_in_which_everything_was_called_wrong_does_not_count() -> None:
    """Else the canary, of which more answers came after it, would look better: 13 of 17 against 28 of 60."""
    rows = [judged(k, f"q{k}", "x", k % 9 == 0, ref="n@v1", at=f"2026-01-01T00:{k:02d}") for k in range(30)]
    rows += [judged(30 + k, f"c{k}", "x", False, ref="n@v2", at=f"2026-01-01T00:{k:02d}") for k in range(3)]
    rows += [judged(50 + k, f"p{k}", None, k % 5 > 0, ref="n@v1", at=f"2026-01-02T00:{k:02d}") for k in range(30)]
    rows += [judged(90 + k, f"d{k}", None, k != 4, ref="n@v2", at=f"2026-01-02T00:{k:02d}") for k in range(14)]
    rows.sort(key=lambda one: one.kept.at)
    left = reliable(rows, "n@v1")
    assert len(left) < 48
    assert RightCount.of(left, "n@v1").share > 0.7
    assert RightCount.of(left, "n@v2").share > 0.8
    assert reliable(left, "n@v1") == left


def test_an_equal_canary_is_seldom_rolled_back() -> None:
    draw, back = random.Random(0), 0
    for _ in range(300):
        right = [sum(draw.random() < 0.85 for _ in range(n)) for n in (40, 400)]
        back += decide(RightCount(right[0], 40), RightCount(right[1], 400), 20)[0] == ROLL_BACK
    assert back <= 300 * 0.08


def test_only_judged_answers_of_the_version_count() -> None:
    rows = [
        judged(1, "a", None, True, ref="n@v2"),
        judged(2, "b", "x", False, ref="n@v2"),
        judged(3, "c", "x", None, ref="n@v2"),
        judged(4, "d", None, True, ref="n@v1"),
    ]
    assert RightCount.of(rows, "n@v2") == RightCount(1, 2)


@pytest.mark.parametrize(
    ("canary", "beside", "held", "does"),
    [
        ((0, 0), (0, 0), (0.8, 0.8), PROMOTE),
        ((0, 0), (9, 10), (0.8, 0.9), PROMOTE),
        ((0, 0), (0, 0), (0.8, 0.7), ROLL_BACK),
        ((2, 4), (9, 10), (0.8, 0.9), ROLL_BACK),  # what users said speaks against it
        ((4, 4), (9, 10), (0.8, 0.9), PROMOTE),
        ((0, 0), (0, 0), None, ROLL_BACK),
    ],
)
def test_a_late_decision(
    canary: tuple[int, int], beside: tuple[int, int], held: tuple[float, float] | None, does: str
) -> None:
    gain = {"before": held[0], "after": held[1], "rows": 20} if held else {}
    decided, why = decide_late(RightCount(*canary), RightCount(*beside), gain, 14.2)
    assert decided == does
    assert f"{canary[1]} of its answers were judged in 14 days" in why
