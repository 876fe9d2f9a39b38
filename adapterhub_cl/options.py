"""Options as dataclass fields: help text, conversion from what users write, all problems in one message. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, TypeVar

from adapterhub_cl.errors import UnknownNameError, UsageError

T = TypeVar("T")
WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


def option(default: Any, help: str) -> Any:  # noqa: A002 (the metadata's name)
    """A dataclass field with the help text that the command line shows."""
    return field(default=default, metadata={"help": help})


def flag(name: str) -> str:
    """`learning_rate` → `--learning-rate`."""
    return "--" + name.replace("_", "-")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str, *, prefix: str = "") -> T:
    """A dataclass of options from a config file or keyword arguments; unknown keys and wrong types are refused.

    Args:
        values: option → value; dashes and underscores both do, numbers may be texts.
        where: where they came from, for the message.
        prefix: stands before an option in messages instead of `--`, for example `replay.`.

    Raises:
        UnknownNameError: no such option.
        UsageError: values of the wrong type, all in one message; or whatever the class itself refuses.
    """
    kinds = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    problems = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            raise UnknownNameError(f"setting in {where}", str(key), [n.replace("_", "-") for n in kinds])
        try:
            found[name] = _as(kinds[name], value)
        except (TypeError, ValueError, OverflowError):
            shown = f"{prefix}{name}" if prefix else flag(name)
            problems.append(f"{shown} must be {WORDS[kinds[name].split(' ')[0]]}, not {value!r}")
    if problems:
        raise UsageError("; ".join(problems), f"mend {where}")
    return cls(**found)


def _as(kind: str, value: Any) -> Any:
    if value is None and "None" in kind:
        return None
    if kind.startswith("bool"):
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, bool):
        raise TypeError
    if kind.startswith("int"):
        if float(value) != int(float(value)):
            raise ValueError
        return int(float(value))
    if kind.startswith("float"):
        return float(value)
    if isinstance(value, list):
        return ",".join(str(v) for v in value)
    if not isinstance(value, str | int | float):
        raise TypeError
    return str(value)
