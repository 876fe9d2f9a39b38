"""A stretch of contradicted rows is found where there is one, and only there."""

from __future__ import annotations

import random

import pytest

from adapterhub_cl.loop.incident import FEWEST, incident


def drawn(seed: int, *parts: tuple[int, float]) -> list[bool]:
    draw = random.Random(seed)
    return [draw.random() < share for count, share in parts for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_a_stretch_is_found_with_its_ends(seed: int) -> None:
    found = incident(drawn(seed, (40, 0.1), (40, 0.9), (40, 0.1)))
    assert found is not None
    assert abs(found.start - 40) <= 4
    assert abs(found.stop - 80) <= 4
    assert found.over
    assert found.wrong > 0.7 > 0.3 > found.wrong_elsewhere


def test_a_stretch_at_the_end_may_go_on() -> None:
    found = incident(drawn(0, (40, 0.1), (40, 0.9)))
    assert found is not None
    assert not found.over
    assert found.stop == 80


def test_even_feedback_has_no_stretch() -> None:
    found = [incident(drawn(seed, (72, 0.3))) for seed in range(40)]
    assert sum(one is not None for one in found) <= 3  # a twentieth at most by chance


@pytest.mark.parametrize("wrong", [[], [True] * 50, [False] * 50, [True, False] * (FEWEST - 1)])
def test_nothing_to_compare_gives_nothing(wrong: list[bool]) -> None:
    assert incident(wrong) is None
