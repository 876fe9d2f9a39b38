"""Checks of the structure of what was read from a hub's files, and descriptions of what is wrong.

Hubs are copied, edited by hand and received from others. Invalid entries are dropped where they are read, so that the
code behind need not expect them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.registry.names import check_alias, is_name, parse_ref
from adapterhub_cl.types import RELATIONS, TASK_KINDS, Evaluation

MOST = 2**63 - 1  # what the index can hold
LARGEST_RANK = 2**31 - 1
LAST_VERSION = 999_999_999
_DEEPEST = 100
_SHOWN = 60
_OF_CLASS = ("precision", "recall", "f1", "support")
_OBJECTS = ("training", "replay", "stream", "recipe", "storage", "retention", "online", "task_spec")
_OBJECTS_WITHIN = {"training": ("data", "eval", "settings"), "recipe": ("weights",)}
_NAMES = ("takes_over", "learned_from")


def parse(text: str, *, halves: bool = False) -> Any:
    """Parse JSON.

    Args:
        halves: accept strings with lone surrogates, which are not valid UTF-8; the caller checks them with `is_text`.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or contains text that is not valid UTF-8.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [found]
    for _ in range(_DEEPEST):
        level = [below for one in level if isinstance(one, dict | list) for below in _below(one)]
    if level:
        raise ValueError("it is nested too deeply")
    if not halves and ("\\ud" in text or "\\uD" in text):  # a lone surrogate can be read, but not written again
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _below(one: dict[str, Any] | list[Any]) -> list[Any]:
    return [below for below in (one.values() if isinstance(one, dict) else one) if isinstance(below, dict | list)]


def shown(value: Any) -> str:
    """A value as a message shows it: short, and without characters that move a terminal's cursor."""
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN + 2 else f"{text[:_SHOWN]}…"


def is_count(value: Any, most: int = MOST, least: int = 0) -> bool:
    """Whether it is a whole number that the index can store."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, *, finite: bool = True) -> bool:
    """Whether it is a number that fits a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) or not finite
    except OverflowError:
        return False


def is_text(value: Any) -> bool:
    """Whether it is a text that can be written as UTF-8; JSON may contain lone surrogates, which cannot."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def is_a_name(value: Any) -> bool:
    return isinstance(value, str) and is_name(value)


def is_an_alias(value: Any) -> bool:
    try:
        return isinstance(value, str) and check_alias(value) == value
    except UsageError:
        return False


def version_of(value: Any) -> tuple[str, int] | None:
    """Name and number of a text like `news@v2`; None for anything else."""
    try:
        ref = parse_ref(value) if isinstance(value, str) else None
    except UsageError:
        return None
    return None if ref is None or ref.version is None else (ref.name, ref.version)


def wrong_task(spec: Any, name: str | None = None) -> str:
    """What is wrong with a task's description; empty if it is valid.

    Args:
        name: the task it must describe.
    """
    if not isinstance(spec, dict):
        return f"it is {_kind(spec)}, not an object"
    if not is_a_name(spec.get("name")) or spec["name"] != (name or spec["name"]):
        return f"its name is {shown(spec.get('name'))}"
    if spec.get("kind", "generation") not in TASK_KINDS:
        return f"its kind is {shown(spec['kind'])}"
    for key in ("prompt_format", "instruction", "metric"):
        if not is_text(spec.get(key, "")):
            return f"its {key} is {shown(spec[key])}"
    labels = spec.get("labels", [])
    if not isinstance(labels, list) or not all(map(is_text, labels)):
        return "its labels are not a list of texts"
    return ""


def wrong_score(row: Any) -> str:
    """What is wrong with a recorded score; empty if it is valid. Its details need only be an object."""
    if not isinstance(row, dict):
        return f"it is {_kind(row)}, not an object"
    if missing := [key for key in ("task", "metric", "value", "n") if key not in row]:
        return f"it has no {missing[0]}"
    if not is_a_name(row["task"]) and row["task"] != "":
        return f"its task is {shown(row['task'])}"
    for key in ("metric", "data"):
        if not isinstance(row.get(key, ""), str):
            return f"its {key} is {_kind(row[key])}, not a text"
    if not is_number(row["value"]):
        return f"its value is {shown(row['value'])}, not a finite number"
    if not is_count(row["n"]):
        return f"its n is {shown(row['n'])}"
    return "" if isinstance(row.get("details", {}), dict) else "its details are not an object"


def wrong_details(details: Mapping[str, Any]) -> list[str]:
    """The parts of a score's details that do not have the structure that a measurement writes."""
    return [key for key, is_sound in _DETAILS.items() if details.get(key) is not None and not is_sound(details[key])]


def sound_details(details: Mapping[str, Any]) -> dict[str, Any]:
    """A score's details without the invalid parts, see `wrong_details`."""
    wrong = wrong_details(details)
    return {key: value for key, value in details.items() if key not in wrong}


def _is_interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


def _is_report(value: Any) -> bool:
    rows = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(row, dict) and all(is_number(row.get(key)) for key in _OF_CLASS) for row in rows)


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, list) and all(map(is_number, row)) for row in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


_DETAILS = {
    "interval": _is_interval,
    "classes": _is_report,
    "confusion": _is_matrix,
    "labels": _is_texts,
    "before": is_number,
    "after": is_number,
    "of": is_text,
    "sha256": is_text,
    "row_scores": is_text,
}


def wrong_parts(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong inside a manifest whose own keys have the right types."""
    for key, most in (("rank", LARGEST_RANK), ("bytes", MOST)):
        if not is_count(manifest[key], most):
            yield f"{key} is {shown(manifest[key])}"
    if manifest["task"] and not is_name(manifest["task"]):
        yield f"{shown(manifest['task'])} is not a valid task name"
    if not isinstance(manifest.get("base", {}), dict):
        yield "base is not an object"
    for key in _OBJECTS:
        part = manifest.get(key)
        if part is not None and not isinstance(part, dict):
            yield f"{key} is {_kind(part)}, not an object"
            continue
        if part is None:
            continue
        for below in _OBJECTS_WITHIN.get(key, ()):
            if not isinstance(part.get(below) or {}, dict):
                yield f"{key}.{below} is {_kind(part[below])}, not an object"
    for key in _NAMES:
        names = manifest.get(key)
        if names is not None and not (isinstance(names, list) and all(map(is_a_name, names))):
            yield f"{key} is not a list of names"
    for key in ("target_modules", "read_from"):  # read_from has references
        if not _is_texts(manifest.get(key) or []):
            yield f"{key} is not a list of texts"
    if isinstance(manifest.get("task_spec"), dict) and (wrong := wrong_task(manifest["task_spec"])):
        yield f"task_spec: {wrong}"
    kept = manifest.get("retention")
    for task, share in kept.items() if isinstance(kept, dict) else ():
        if not is_a_name(task) or not is_number(share, finite=False):
            yield f"the retention of {shown(task)} is {shown(share)}"
    yield from _wrong_rows(manifest)
    published = manifest["published"]
    if not isinstance(published.get("verb"), str) or not all(
        isinstance(published.get(key), bool) for key in ("serve", "move_latest")
    ):
        yield "published lacks verb, serve or move_latest"


def _wrong_rows(manifest: Mapping[str, Any]) -> Iterator[str]:
    for number, edge in enumerate(manifest["lineage"], 1):
        if not isinstance(edge, dict) or not isinstance(edge.get("parent"), str) or not edge["parent"]:
            yield f"edge {number} of its lineage has no parent"
        elif edge.get("relation") not in RELATIONS:
            yield f"edge {number} of its lineage has the relation {shown(edge.get('relation'))}"
    known = Evaluation.__dataclass_fields__.keys()
    for number, row in enumerate(manifest["evaluations"], 1):
        if wrong := wrong_score(row):
            yield f"score {number}: {wrong}"
        elif more := sorted(row.keys() - known):
            yield f"score {number}: unknown key {shown(more[0])}"


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return words.get(type(value), "a number")
