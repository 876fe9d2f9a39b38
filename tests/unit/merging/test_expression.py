"""`0.7*news + 0.3*reviews - slang` and what cannot be read."""

from __future__ import annotations

import pytest

from adapterhub_cl.consolidation.expression import parse_expression
from adapterhub_cl.errors import UsageError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.7*news + 0.3*reviews - slang", {"news": 0.7, "reviews": 0.3, "slang": -1.0}),
        ("-a + b", {"a": -1.0, "b": 1.0}),
        ("+a", {"a": 1.0}),
        ("(a+b)/2 - 0.5*c@v2", {"a": 0.5, "b": 0.5, "c@v2": -0.5}),
        ("2*3*x", {"x": 6.0}),
        ("a*0.5 + a/4", {"a": 0.75}),
        ("1e-3*a", {"a": 0.001}),
        (".5 * 4chan@production", {"4chan@production": 0.5}),
        ("my-task + b", {"my-task": 1.0, "b": 1.0}),
        ("a - a", {"a": 0.0}),
        ("-(a - 2*(b + c))", {"a": -1.0, "b": 2.0, "c": 2.0}),
    ],
)
def test_it_reads(text: str, found: dict[str, float]) -> None:
    read = parse_expression(text)
    assert list(read) == list(found)
    assert read == pytest.approx(found)


@pytest.mark.parametrize(
    ("text", "known", "found"),
    [
        ("0.5*a-0.5*b", {"a", "b"}, {"a": 0.5, "b": -0.5}),
        ("a-b", {"a", "b"}, {"a": 1.0, "b": -1.0}),
        ("a-b", {"a", "b", "a-b"}, {"a-b": 1.0}),
        ("my-a-b", {"my-a", "b"}, {"my-a": 1.0, "b": -1.0}),
        ("x-y", {"a"}, {"x-y": 1.0}),
    ],
)
def test_a_minus_without_spaces(text: str, known: set[str], found: dict[str, float]) -> None:
    assert parse_expression(text, known) == pytest.approx(found)


@pytest.mark.parametrize(
    "text", ["", "  ", "a b", "a +", "3", "(a", "a)", "a*b", "a/0", "2*-a", "a/b", "*a", "a $ b", "2/a"]
)
def test_it_says_what_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        parse_expression(text)
