"""Bytes → rows, one function for each file format. Every error names the line (or item).

A parser takes the file's bytes and the name to use in messages, and returns `(line, row)` pairs; `line` counts
from 1 and is the line on which the row begins (for JSON lists: the item's number).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from adapterhub_cl.data.values import JSON, UnclearError, read_json
from adapterhub_cl.errors import DataError

Numbered = list[tuple[int, dict[str, Any]]]
FIELD_LIMIT = 2**31 - 1  # characters in one CSV field; the standard library's default is 131,072
# keys beside a list of rows under `data` that belong to every row's question
OF_A_QUESTION = (
    "instruction",
    "system",
    "system_prompt",
    "prompt",
    "question",
    "context",
    "tools",
    "choices",
    "history",
)

# byte order mark → encoding, the longer marks first
MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
# which of four bytes are mostly NUL → encoding; in the last two rows where few characters are Latin ones
WIDE: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
    (False, False, True, True): "UTF-32LE",
    (True, True, False, False): "UTF-32BE",
}


def decode(raw: bytes, name: str) -> str:
    """UTF-8 text, with or without a byte order mark. If all its lines end in CR, as on old Macs, they end in LF.

    Raises:
        DataError: the bytes are in another encoding; names the line and the byte.
    """
    if wide := _wide(raw):
        raise DataError(f"{name} line 1: {wide[:6]}, not UTF-8", f"iconv -f {wide} -t UTF-8 {name}")
    if b"\n" not in raw:
        raw = raw.replace(b"\r", b"\n")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} line {line}: not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start})",
            f"convert it first, for example: iconv -f WINDOWS-1252 -t UTF-8 {name}",
        ) from None


def _wide(raw: bytes) -> str:
    """The encoding of text with two or four bytes for a character; empty if it has another one."""
    marked = next((name for mark, name in MARKS.items() if raw.startswith(mark)), "")
    parts = [raw[k:1024:4] for k in range(4)]
    return marked or WIDE.get(tuple(2 * part.count(0) > len(part) for part in parts), "")


def _loads(text: str, where: str, hint: str) -> Any:
    try:
        return read_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {_why(error)}", hint) from None


def _why(error: Exception) -> str:
    """Why a JSON text cannot be read."""
    if isinstance(error, UnclearError):
        return str(error)
    # a ValueError may also be an integer with too many digits
    return f"not JSON ({error.msg if isinstance(error, json.JSONDecodeError) else error})"


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), f"a {type(value).__name__}")
        raise DataError(
            f"{where}: {kind}, not an object", 'every row must be an object such as {"text": …, "label": …}'
        )
    return value


def parse_jsonl(raw: bytes, name: str) -> Numbered:
    """One JSON object a line; blank lines are skipped."""
    rows = []
    # split at \n only: U+2028 and others that str.splitlines treats as line ends are legal inside JSON strings
    for number, line in enumerate(decode(raw, name).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        rows.append((number, _object(_loads(line, where, "each line must be one JSON object; fix the line"), where)))
    return rows


def parse_json(raw: bytes, name: str) -> tuple[Numbered, str]:
    """A list of objects, `{"data": [...]}`, or SQuAD articles (unit `item`), or a file of JSON lines (unit `line`)."""
    text = decode(raw, name)
    try:
        value = read_json(text)
    except (ValueError, RecursionError) as error:
        first, _, rest = text.strip().partition("\n")
        if rest and first.rstrip().endswith("}"):
            return parse_jsonl(raw, name), "line"
        place = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else _first_unclear(text)
        raise DataError(f"{name} {place}: {_why(error)}", "fix the file or write JSON lines") from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        if beside := [key for key in OF_A_QUESTION if value.get(key)]:
            raise DataError(
                f"{name}: {', '.join(map(repr, beside))} beside 'data' would be ignored",
                "write it into each row, or give an instruction for all rows with --instruction",
            )
        value = value["data"]
    elif isinstance(value, dict) and "\n" not in text.strip():
        value = [value]  # JSON lines with a single line
    if isinstance(value, list) and value and all(isinstance(v, dict) and "paragraphs" in v for v in value):
        value = _squad(value, name)
    if not isinstance(value, list):
        raise DataError(
            f"{name}: neither a list of rows nor an object with a list under 'data'",
            'write [{…}, {…}] or {"data": [{…}, {…}]}',
        )
    return [(number, _object(item, f"{name} item {number}")) for number, item in enumerate(value, 1)], "item"


def _first_unclear(text: str) -> str:
    """The first item of a list of rows that cannot be read by itself; the first line of anything else."""
    found = re.match(r"\s*\[", text) or re.search(r'"data"\s*:\s*\[', text)
    at, number = (found.end(), 1) if found else (len(text), 1)
    while at < len(text) and text[at] != "]":
        if text[at].isspace() or text[at] == ",":
            at += 1
            continue
        try:
            _, at = JSON.raw_decode(text, at)
        except (ValueError, RecursionError):
            return f"item {number}"
        number += 1
    return "line 1"


def _squad(articles: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """SQuAD's articles as rows: each question with its passage and all of its answers."""
    rows: list[dict[str, Any]] = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    rows.append(
                        {
                            "id": asked.get("id"),
                            "context": paragraph["context"],
                            "question": asked["question"],
                            "answers": [answer["text"] for answer in asked.get("answers") or ()],
                        }
                    )
    except (KeyError, TypeError, AttributeError) as error:
        lacks = f"lacks {error}" if isinstance(error, KeyError) else "does not have SQuAD's structure"
        raise DataError(
            f"{name}: this looks like SQuAD data, but question {len(rows) + 1} {lacks}",
            'write {"data": [{"paragraphs": [{"context": …, "qas": [{"question": …, "answers": [{"text": …}]}]}]}]}',
        ) from None
    return rows


def _records(text: str, name: str, **style: Any) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **style)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name} line {line}: {error}", 'quote fields with "…" and double the quotes inside'
            ) from None


def _table(text: str, name: str, **style: Any) -> Numbered:
    before = csv.field_size_limit(FIELD_LIMIT)
    try:
        records = [(line, record) for line, record in _records(text, name, **style) if any(f.strip() for f in record)]
    finally:
        csv.field_size_limit(before)
    return _rows(records, name, "quote fields that contain the separator")


def _rows(records: list[tuple[int, list[str]]], name: str, hint: str) -> Numbered:
    """Records → rows; the first record is the header.

    Args:
        hint: advice for a record with more fields than the header.
    """
    if not records:
        return []
    header = [field.strip() for field in records[0][1]]
    if "" in header or len(set(header)) < len(header):
        raise DataError(
            f"{name} line {records[0][0]}: the header has an empty or repeated column name: {', '.join(header)}",
            "the first line must name every column once",
        )
    rows: Numbered = []
    for line, record in records[1:]:
        if len(record) > len(header):
            raise DataError(
                f"{name} line {line}: {len(record)} fields, but the header names {len(header)}",
                hint,
            )
        padded: list[str | None] = [*record, *[None] * (len(header) - len(record))]
        rows.append((line, dict(zip(header, padded, strict=True))))
    return rows


def parse_csv(raw: bytes, name: str) -> Numbered:
    """Comma-separated with a header; if the header has semicolons and no comma, semicolon-separated. Excel's
    first line `sep=;` sets the separator."""
    text = decode(raw, name)
    told = re.match(r"sep=(.)[^\S\n]*\r?\n", text, re.IGNORECASE)
    if told:  # Excel's own first line; it is replaced by an empty one, so that line numbers stay right
        return _table("\n" + text[told.end() :], name, delimiter=told[1])
    header = text.lstrip().partition("\n")[0]
    return _table(text, name, delimiter=";" if ";" in header and "," not in header else ",")


def parse_tsv(raw: bytes, name: str) -> Numbered:
    """Tab-separated with a header, one row a line. A field is quoted only if its own quotes enclose it; any other
    quote is text, as in most tab-separated data. Quoted fields that span lines are read if the lines do not form a
    table otherwise, and if no such field would hold a tab: that would be other rows with their labels."""
    text = decode(raw, name)
    lines = enumerate(re.split(r"\r?\n", text), 1)
    records = [(n, [_unquoted(f) for f in line.split("\t")]) for n, line in lines if line.strip()]
    if len({len(fields) for _, fields in records}) > 1:
        with suppress(DataError):
            quoted = _table(text, name, delimiter="\t")
            if quoted and not any(value is None or "\t" in value for _, row in quoted for value in row.values()):
                return quoted
    return _rows(records, name, "a field cannot hold a tab or a line end: write JSON lines instead")


def _unquoted(field: str) -> str:
    inner = field[1:-1]
    whole = len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else field


def parse_documents(raw: bytes, name: str) -> Numbered:
    """Raw text: documents separated by blank lines, each one row `{"text": …}`."""
    rows, start, lines = [], 0, [*re.split(r"\r?\n", decode(raw, name)), ""]
    for number, line in enumerate(lines):
        if not line.strip():
            if number > start:
                rows.append((start + 1, {"text": "\n".join(lines[start:number])}))
            start = number + 1
    return rows


def parse_lines(raw: bytes, name: str) -> Numbered:
    """One text a line, each one row `{"text": …}`; blank lines are skipped."""
    lines = re.split(r"\r?\n", decode(raw, name))
    return [(number, {"text": line}) for number, line in enumerate(lines, 1) if line.strip()]


PARSERS: dict[str, Callable[[bytes, str], Numbered]] = {
    ".jsonl": parse_jsonl,
    ".ndjson": parse_jsonl,
    ".csv": parse_csv,
    ".tsv": parse_tsv,
    ".txt": parse_documents,
}
