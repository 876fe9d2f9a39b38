"""Seals: a file that carries the SHA-256 of itself, so that a flipped bit in an unfinished run's files is found.

In a safetensors file the hash stands in its metadata, and is that of the file with zeros in the hash's place. In
`run.json` it stands beside what it is of. A file without one was written before there were seals: nothing can be said.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

KEY = "seal"
BLANK = "0" * 64
_LONGEST_HEADER = 100_000_000  # what safetensors reads
_CHUNK = 1 << 20


def seal(path: Path) -> None:
    """Write the hash into a safetensors file that was saved with `{KEY: BLANK}` among its metadata.

    Raises:
        ValueError: it was not.
    """
    with path.open("rb+") as file:
        place = _place(file)
        if place is None:
            raise ValueError(f"{path} has no place for its hash")
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def is_broken(path: Path) -> bool:
    """Whether a safetensors file is not the one that was sealed; no for one without a seal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        place = _place(file)
        if place is None:
            return not _is_plain(file)
        file.seek(place)
        return file.read(len(BLANK)) != _digest(file, place).encode()


def _header(file: BinaryIO) -> bytes:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    return file.read(length) if length <= _LONGEST_HEADER else b""


def _place(file: BinaryIO) -> int | None:
    """Where the hash stands; None where there is none."""
    mark = f'"{KEY}":"'.encode()  # within another text its quotes would be escaped
    header = _header(file)
    at = header.find(mark)
    return None if at < 0 or len(header) < at + len(mark) + len(BLANK) else 8 + at + len(mark)


def _is_plain(file: BinaryIO) -> bool:
    """Whether it is a safetensors file without a seal, also none of which a letter of the key was flipped."""
    try:
        metadata = json.loads(_header(file)).get("__metadata__", {})
        return not any(len(key) == len(KEY) and len(value) == len(BLANK) for key, value in metadata.items())
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False


def _digest(file: BinaryIO, place: int) -> str:
    """SHA-256 of the file, with zeros where its hash stands."""
    found = hashlib.sha256()
    file.seek(0)
    found.update(file.read(place))
    found.update(BLANK.encode())
    file.seek(place + len(BLANK))
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return found.hexdigest()


def of_json(row: Mapping[str, Any]) -> str:
    """The hash of an object, whatever the order of its keys, without the seal in it."""
    text = json.dumps({key: value for key, value in row.items() if key != KEY}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_broken_json(row: Mapping[str, Any]) -> bool:
    """Whether an object is not the one that was sealed; no for one without a seal."""
    return KEY in row and row[KEY] != of_json(row)
