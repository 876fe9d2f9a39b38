"""One cell → text: labels that are numbers, answers that are lists or objects, choices."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from adapterhub_cl.errors import DataError

ENDLESS = "an infinite number, which JSON does not have"
SEVERAL = {"answers", "references", "targets", "outputs"}  # columns whose lists are alternative right answers
MANY_LABELS = re.compile(r"label", re.I)


class UnclearError(ValueError):
    """JSON that Python reads, but that says two things at once or is none by the standard."""


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise UnclearError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        return math.nan
    raise UnclearError(f"{name}: {ENDLESS}")


# one decoder for all rows: making one takes as long as reading a row
JSON = json.JSONDecoder(object_pairs_hook=_unrepeated, parse_constant=_constant)


def read_json(text: str) -> Any:
    """The value of a JSON text. NaN is read too, as an empty cell.

    Raises:
        UnclearError: a key occurs twice in an object, or a number is infinite.
        ValueError, RecursionError: it is no JSON, or too deep.
    """
    return JSON.decode(text)


def as_object(value: Any) -> Any:
    """A JSON text of an object as that object; anything else as it is."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            found = read_json(value)
            return found if isinstance(found, dict) else value
    return value


def as_json(value: Any, where: str, column: str) -> str:
    """An object or a list as JSON, in which NaN is null, and a date or the like a text.

    Raises:
        DataError: a number in it is infinite.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_scalar)
    except (ValueError, RecursionError):
        found = without_nan(value, f"{where}: column {column!r}")
        return json.dumps(found, ensure_ascii=False, allow_nan=False, default=_scalar)


def without_nan(value: Any, which: str) -> Any:
    """A value of JSON in which NaN is null.

    Args:
        which: where it stands, for messages.

    Raises:
        DataError: a number in it is infinite, or objects and lists are nested too deeply.
    """
    try:
        return _without_nan(value, which)
    except RecursionError:
        raise too_deep(which) from None


def _without_nan(value: Any, which: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one, which) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one, which) for one in value]
    if isinstance(value, float | Decimal) and math.isinf(value):
        raise DataError(f"{which} holds {ENDLESS}", "write a number, or null for an empty cell")
    return None if isinstance(value, float | Decimal) and math.isnan(value) else value


def too_deep(which: str) -> DataError:
    """The error for objects and lists that stand in one another too often to be read."""
    return DataError(f"{which} holds objects or lists that are nested too deeply", "write it with fewer levels")


def whole_characters(text: str) -> str:
    """The text with lone surrogates (from cut JSON, or a shell) replaced, because no tokenizer accepts them."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if not text.isascii() else text


def tidy(text: str) -> str:
    """The text without surrounding blank lines and trailing spaces; the indentation of code is kept."""
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text.rstrip())
    return text if re.match(r"\t|  ", text) else text.lstrip()


def as_label(text: str) -> str:
    """A label in the form used for comparison: without surrounding spaces, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def input_text(value: Any, where: str, column: str) -> str:
    """The text of an input cell; empty for null. Numbers are converted to text.

    Raises:
        DataError: the cell is a list or an object, or an infinite number.
    """
    if isinstance(value, Mapping | list | tuple):
        raise DataError(
            f"{where}: column {column!r} is {'an object' if isinstance(value, Mapping) else 'a list'}, not a text",
            "choose other columns: --columns input=COLUMN,output=COLUMN",
        )
    return _scalar(without_nan(value, f"{where}: column {column!r}"))


def is_structured(values: Sequence[Any], column: str) -> bool:
    """Whether the answers of a column are data, to be written as JSON: any object other than SQuAD's
    `{"text": …}`, or any list of several items in a column that does not list alternative right answers."""
    if column.strip().lower() in SEVERAL or MANY_LABELS.search(column):
        return False
    return any(
        (isinstance(value, Mapping) and "text" not in value)
        or (
            isinstance(value, list | tuple)
            and (len(value) > 1 or any(isinstance(item, Mapping | list | tuple) for item in value))
        )
        for value in values
    )


def as_data(value: Any, class_names: Sequence[str] = ()) -> Any:
    """A cell as a value of a JSON object: null if it is empty, a class by its name, and what JSON does not have as
    text. An infinite number stays one, for `as_json` to refuse."""
    if isinstance(value, Mapping):
        return {str(key): as_data(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(one) for one in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return class_names[value] if 0 <= value < len(class_names) else None if class_names else value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value == int(value) else value
    if isinstance(value, float | Decimal) and math.isinf(value):
        return float(value)
    return _scalar(value) or None


def answer_texts(
    value: Any, where: str, column: str, class_names: Sequence[str] = (), *, structured: bool = False
) -> list[str]:
    """The right answers in a cell, the main one first; none for null, NaN and class −1.

    Whole numbers become their decimal text, or the class name if there are names; booleans become `true` and
    `false`. A list, or SQuAD's `{"text": [...]}`, has several right answers.

    Args:
        structured: write objects and lists as JSON, see `is_structured`.

    Raises:
        DataError: a row has several labels, a class number has no name, or a number is infinite.
    """
    if structured and isinstance(value, Mapping | list | tuple):
        return [as_json(value, where, column)]
    if isinstance(value, Mapping):
        value = value["text"] if "text" in value else as_json(value, where, column)
    if isinstance(value, list | tuple) and len(value) > 1 and MANY_LABELS.search(column):
        raise DataError(
            f"{where}: {len(value)} labels in column {column!r}; a choice has one", "write one label for each row"
        )
    found: list[str] = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if class_names and isinstance(one, int) and not isinstance(one, bool):
            if one == -1:
                continue
            if not 0 <= one < len(class_names):
                raise DataError(
                    f"{where}: class {one} in column {column!r}, which has {len(class_names)} classes",
                    "correct the row or the class names",
                )
            one = class_names[one]
        elif isinstance(one, Mapping) and isinstance(one.get("text"), str):
            one = one["text"]
        nested = isinstance(one, Mapping | list | tuple)
        text = as_json(one, where, column) if nested else _scalar(without_nan(one, f"{where}: column {column!r}"))
        if text and text not in found:
            found.append(text)
    return found


def choices_text(value: Any, where: str, column: str) -> str:
    """The options of a multiple-choice question, one a line after its letter; empty for null.

    Options are a list of texts, or ARC's `{"text": [...], "label": [...]}`.

    Raises:
        DataError: neither of these.
    """
    if value is None:
        return ""
    if isinstance(value, Mapping) and "text" in value:
        texts, marks = value["text"], value.get("label")
    elif isinstance(value, Mapping):
        texts, marks = list(value.values()), list(value.keys())
    elif isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) and "text" in v for v in value):
        texts, marks = [v["text"] for v in value], [v.get("label") for v in value]
    else:
        texts, marks = value, None
    if isinstance(texts, str):
        return _scalar(texts)
    if not isinstance(texts, list | tuple) or any(isinstance(text, Mapping | list | tuple) for text in texts):
        raise DataError(f"{where}: column {column!r} is not a list of options", 'write ["first", "second", …]')
    if not marks or len(marks) != len(texts) or not all(marks):
        marks = [chr(ord("A") + k) if k < 26 else str(k + 1) for k in range(len(texts))]
    return "\n".join(f"{mark}. {_scalar(text)}" for mark, text in zip(marks, texts, strict=True))


def _scalar(value: Any) -> str:
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if isinstance(value, bytes):
        return tidy(value.decode("utf-8", errors="replace"))
    return tidy(whole_characters(str(value)))
