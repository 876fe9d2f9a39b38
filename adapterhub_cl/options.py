"""Options as dataclass fields: help text, conversion from what users write, all problems in one message. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from adapterhub_cl.errors import UnknownNameError, UsageError

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
LISTS = (list, tuple, Sequence)
PLAIN: dict[str, Any] = {kind.__name__: kind for kind in WORDS} | {f"{k.__name__} | None": k | None for k in WORDS}


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
    kinds = kinds_of(cls)
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
            problems.append(f"{shown} must be {_words(kinds[name])}, not {value!r}")
    if problems:
        raise UsageError("; ".join(problems), f"mend {where}")
    return cls(**found)


def kinds_of(cls: type[Any]) -> dict[str, Any]:
    """The type of each option, whether or not the class was written under `from __future__ import annotations`."""
    try:
        hints = get_type_hints(cls)
    except NameError:  # a name that only type checkers import: such an option is taken as it is given
        hints = {f.name: PLAIN.get(f.type, Any) if isinstance(f.type, str) else f.type for f in fields(cls)}
    return {f.name: hints[f.name] for f in fields(cls)}


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The types of which a value may be one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _as(kind: Any, value: Any) -> Any:
    """The value as the first of the types that takes it."""
    error: Exception = TypeError()
    for one in _kinds(kind):
        try:
            return _as_one(one, value)
        except (TypeError, ValueError, OverflowError) as refused:
            error = refused
    raise error


def _as_one(kind: Any, value: Any) -> Any:
    origin = get_origin(kind) or kind
    if origin in LISTS:
        return _as_list(kind, value)
    if origin is Literal:
        return get_args(kind)[[str(one) for one in get_args(kind)].index(str(value))]
    if kind is Any:
        return value
    if kind is NoneType or kind is bool:
        if not isinstance(value, kind):
            raise TypeError
        return value
    if isinstance(value, bool):
        raise TypeError
    if kind is int:
        if float(value) != int(float(value)):
            raise ValueError
        return int(float(value))
    if kind is float:
        return float(value)
    if isinstance(value, list):
        return ",".join(str(v) for v in value)
    if not isinstance(value, str | int | float):
        raise TypeError
    return str(value)


def _as_list(kind: Any, value: Any) -> Any:
    """A list, or a text with commas between."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise TypeError
    inner = [one for one in get_args(kind) if one is not Ellipsis] or [Any]
    made = [_as(inner[0], one) for one in value]
    return tuple(made) if (get_origin(kind) or kind) is tuple else made


def _words(kind: Any) -> str:
    """What a value must be, for a message."""
    said = []
    for one in _kinds(kind):
        origin = get_origin(one) or one
        if origin is Literal:
            said.append("one of " + ", ".join(str(choice) for choice in get_args(one)))
        elif origin in LISTS:
            said.append("a list, or a text with commas between")
        elif one is not NoneType:
            said.append(WORDS.get(one, "a text"))
    return " or ".join(said)
