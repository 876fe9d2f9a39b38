"""What an adapter keeps elsewhere: the share of the score, and when a loss is one."""

from __future__ import annotations

import pytest

from adapterhub_cl.evaluation.compared import Answers, compare, lost_too_much, scored
from adapterhub_cl.evaluation.probes import Probe
from adapterhub_cl.types import Example, Task


def probe(count: int) -> Probe:
    task = Task("news", "choice", labels=("a", "b"), metric="accuracy")
    return Probe(task, [Example(str(k), "a") for k in range(count)], "/home/me/dev.jsonl", 64)


def said(count: int, right: int) -> list[str]:
    return ["a"] * right + ["b"] * (count - right)


def test_the_figures() -> None:
    rows = probe(60)
    adapter, other = (scored(rows, ["a"] * 60, said(60, right)) for right in (40, 30))
    found = compare(rows, Answers((), 0.25), adapter, other)
    assert (found.adapter, found.export, found.base) == (pytest.approx(2 / 3, abs=1e-6), 0.5, 0.25)
    assert found.retention == pytest.approx(0.75)
    assert found.same_answers == pytest.approx(50 / 60, abs=1e-6)
    assert found.data == "dev.jsonl"
    assert compare(rows, Answers((), 0.0), Answers((), 0.0), other).retention == 1.0  # there was nothing to lose
    assert compare(rows, Answers((), 0.0), Answers((), 0.5), other).same_answers is None


@pytest.mark.parametrize("count", [3, 7, 60, 97])
def test_one_row_is_never_too_much(count: int) -> None:
    rows = probe(count)
    adapter = scored(rows, ["a"] * count, said(count, count))
    for lost, least, refused in ((0, 1.0, False), (1, 1.0, False), (2, 1.0, True), (2, 0.0, False)):
        other = scored(rows, ["a"] * count, said(count, count - lost))
        assert lost_too_much(compare(rows, Answers((), 0.0), adapter, other), least) is refused


def test_nothing_right_is_too_much_of_the_only_row() -> None:
    rows = probe(3)
    adapter, other = (scored(rows, ["a"] * 3, said(3, right)) for right in (1, 0))
    assert lost_too_much(compare(rows, Answers((), 0.0), adapter, other), 0.97)


def test_a_few_rows_are_spread_over_a_file_that_is_sorted() -> None:
    assert [e.input for e in probe(10).few(4).examples] == ["0", "2", "5", "7"]
    assert probe(3).few(4).examples == probe(3).examples
    assert len(probe(7).few(7).examples) == 7
