"""What is told of an adapter that learned to choose no better than by its most frequent answer."""

from __future__ import annotations

import pytest

from adapterhub_cl.training.learn import guessing


@pytest.mark.parametrize(
    ("answers", "right", "told"),
    [
        (["a"] * 6 + ["b"] * 4, 0.6, True),
        (["a"] * 6 + ["b"] * 4, 0.3, True),
        (["a"] * 6 + ["b"] * 4, 0.7, False),
        (["a"] * 10, 1.0, False),
        (["a"] * 10, 0.2, False),
        ([], 0.0, False),
    ],
)
def test_a_choice_is_held_against_its_most_frequent_answer(answers: list[str], right: float, told: bool) -> None:
    assert bool(guessing(answers, right)) is told


def test_the_warning_says_both_shares_and_what_to_do() -> None:
    told = guessing(["spam"] * 3 + ["ham"], 0.5)
    assert told.startswith("warning: right in 50% of the 4 rows held out, and always answering 'spam' in 75%")
    assert "--epochs" in told
