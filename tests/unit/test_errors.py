"""One tree of errors; each with a code, an exit code and one line."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl import errors
from adapterhub_cl.errors import AdapterHubError, UnknownNameError

ALL = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, AdapterHubError)]


def test_every_error_is_of_the_tree_and_has_its_own_code() -> None:
    defined = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert defined == ALL
    codes = [e.code for e in ALL]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)
    assert all(e.__doc__ for e in ALL)


def test_exit_codes_are_those_promised() -> None:
    found = {e.__name__: e.exit_code for e in ALL if e.exit_code != 1}
    assert found == {
        "UsageError": 2,
        "UnknownNameError": 2,
        "GateRefused": 3,
        "ExportRefused": 3,
        "TrainingInterrupted": 130,
    }


def test_message_and_hint() -> None:
    error = AdapterHubError("it broke", "mend it")
    assert (str(error), error.message, error.hint) == ("it broke", "it broke", "mend it")
    assert AdapterHubError("it broke").hint == ""


def test_unknown_name_lists_and_cuts_long_lists() -> None:
    error = UnknownNameError("colour", "gren", ["blue", "green", "grey"], "or a number")
    assert error.message == "unknown colour 'gren'"
    assert error.hint == "did you mean green or grey? known: blue, green, grey; or a number"
    many = UnknownNameError("colour", "zzz", [f"c{k:02}" for k in range(50)])
    assert many.hint.startswith("known: c00, c01")
    assert many.hint.endswith("c19, … (50 in all)")
    assert UnknownNameError("colour", "x", []).hint == "there is no colour here yet"
    assert UnknownNameError("colour", "x", [], "or a number").hint == "or a number"


@given(name=st.text(max_size=20), known=st.sets(st.text(max_size=10), max_size=30))
def test_any_name_makes_a_message_of_one_line_and_near_ones_are_known(name: str, known: set[str]) -> None:
    error = UnknownNameError("thing", name, known)
    assert len(error.message.splitlines()) == 1
    assert set(error.near) <= known
