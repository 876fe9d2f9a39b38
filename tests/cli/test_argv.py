"""Global flags before and after the verb."""

from __future__ import annotations

import pytest
from cl_adapter.argv import hoist
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.errors import UsageError


def valued(verb: str) -> set[str]:
    return {"--task", "-n"} if verb == "predict" else set()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["list", "--json"], ["--json", "list"]),
        (["--json", "list"], ["--json", "list"]),
        (["list", "--hub", "x", "--all"], ["--hub=x", "list", "--all"]),
        (["--hub", "x", "list"], ["--hub=x", "list"]),
        (["list", "--hub=x"], ["--hub=x", "list"]),
        (["--hub", "list", "list"], ["--hub=list", "list"]),
        (["predict", "--", "--json"], ["predict", "--", "--json"]),
        (["predict", "--json", "--", "--quiet"], ["--json", "predict", "--", "--quiet"]),
        (["predict", "--task", "--json", "hi"], ["predict", "--task", "--json", "hi"]),
        (["predict", "-n", "--debug"], ["predict", "-n", "--debug"]),
        (["predict", "--task=--json"], ["predict", "--task=--json"]),
        (["predict", "hi", "--device", "cpu", "--dtype", "fp32"], ["--device=cpu", "--dtype=fp32", "predict", "hi"]),
        (["add-task", "x", "-"], ["add-task", "x", "-"]),
        (["--version"], ["--version"]),
        ([], []),
    ],
)
def test_flags_move_to_the_front_and_nothing_else_does(argv: list[str], expected: list[str]) -> None:
    assert hoist(argv, valued).argv == expected


def test_an_unknown_flag_before_the_verb_is_left_to_the_parser() -> None:
    assert hoist(["--hubb", "x", "list"], valued).verb is None


@pytest.mark.parametrize(
    "argv", [["list", "--hub"], ["--dtype"], ["list", "--hub", "--json"], ["--hub", "--dtype=fp32"]]
)
def test_a_flag_without_its_value_is_told(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="needs a value"):
        hoist(argv, valued)


@given(st.lists(st.sampled_from(["--json", "--quiet", "--hub=h", "text", "--all", "--task", "--"])), st.data())
def test_where_a_flag_stands_makes_no_difference(rest: list[str], data: st.DataObject) -> None:
    """Moving a global flag that is neither a value nor behind `--` changes nothing but the order of flags."""
    try:
        line = hoist(["predict", *rest], valued)
    except UsageError:
        return
    moved = hoist([*line.flags, "predict", *line.rest], valued)
    assert moved == line
    place = data.draw(st.integers(0, 1))
    extra = ["--debug", "predict", *rest] if place else ["predict", "--debug", *rest]
    assert sorted(hoist(extra, valued).flags) == sorted([*line.flags, "--debug"])
    assert hoist(extra, valued).rest == line.rest
