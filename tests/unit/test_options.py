"""Options of third parties' classes, written with and without `from __future__ import annotations`."""

from __future__ import annotations

from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import from_mapping

SOURCE = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Optional, Union

@dataclass(frozen=True)
class Config:
    count: int = 1
    share: float = 0.5
    sure: bool = False
    name: str = ""
    most: int | None = None
    least: Optional[float] = None
    mode: Literal["mean", "max"] = "mean"
    size: Literal[1, 2] = 1
    layers: list[int] = ()
    words: tuple[str, ...] = ()
    parts: Sequence[float] = ()
    either: Union[int, str] = 0
"""
UNKNOWN = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from pathlib import Path

@dataclass
class Config:
    count: int = 1
    most: float | None = None
    folder: Path | None = None
"""


def config(source: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("a_third_party")
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    exec(compile(source, module.__name__, "exec", dont_inherit=True), module.__dict__)
    return module.Config


@pytest.fixture(params=["", "from __future__ import annotations\n"], ids=["types", "texts"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = config(request.param + SOURCE, monkeypatch)
    assert isinstance(fields(found)[0].type, str) == bool(request.param)
    return found


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"count": "3"}, 3),
        ({"share": "1e-2"}, 0.01),
        ({"sure": True}, True),
        ({"sure": "true"}, True),
        ({"sure": "False"}, False),
        ({"count": 2**70}, 2**70),
        ({"name": 7}, "7"),
        ({"name": ["a", "b"]}, "a,b"),
        ({"most": None}, None),
        ({"most": 2.0}, 2),
        ({"least": "0.5"}, 0.5),
        ({"least": None}, None),
        ({"mode": "max"}, "max"),
        ({"size": "2"}, 2),
        ({"layers": "1, 2"}, [1, 2]),
        ({"layers": [3]}, [3]),
        ({"words": ["a", "b"]}, ("a", "b")),
        ({"parts": "0.5,1"}, [0.5, 1.0]),
        ({"either": "4"}, 4),
        ({"either": "four"}, "four"),
    ],
)
def test_values_become_what_the_class_says(written: Any, given: dict[str, Any], made: Any) -> None:
    (name,) = given
    found = getattr(from_mapping(written, given, "the options"), name)
    assert found == made
    assert type(found) is type(made)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": "x"}, "a whole number"),
        ({"count": 1.5}, "a whole number"),
        ({"count": True}, "a whole number"),
        ({"count": None}, "a whole number"),
        ({"share": "much"}, "a number"),
        ({"sure": "yes"}, "true or false"),
        ({"name": {}}, "a text"),
        ({"most": "x"}, "a whole number"),
        ({"mode": "men"}, "one of mean, max"),
        ({"size": 3}, "one of 1, 2"),
        ({"layers": "1,x"}, "a list, or a text with commas between"),
        ({"words": 3}, "a list, or a text with commas between"),
        ({"either": {}}, "a whole number or a text"),
    ],
)
def test_other_values_are_refused_with_what_they_must_be(written: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping(written, given, "the options", prefix="mine.")
    (name,) = given
    assert caught.value.message == f"mine.{name} must be {said}, not {given[name]!r}"


def test_a_type_that_only_type_checkers_import_is_taken_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found = config(UNKNOWN, monkeypatch)
    made = from_mapping(found, {"count": "2", "most": "0.5", "folder": "here"}, "the options")
    assert (made.count, made.most, made.folder) == (2, 0.5, "here")
    with pytest.raises(UsageError, match="--count must be a whole number"):
        from_mapping(found, {"count": "x"}, "the options")
