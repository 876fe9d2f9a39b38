"""Seals: files that contain their own SHA-256, so that a flipped bit in an unfinished run's files is detected.

In a safetensors file the hash is in the metadata, computed with zeros in its place. In `run.json` it is a key of the
object it was computed from. Files written before there were seals have none and cannot be checked.
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
_LONGEST_HEADER = 100_000_000  # the limit of safetensors
_CHUNK = 1 << 20


def seal(path: Path) -> None:
    """Write the hash into a safetensors file that was saved with `{KEY: BLANK}` in its metadata.

    Raises:
        ValueError: the metadata has no such entry.
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
    """Whether a safetensors file has changed since it was sealed; False for one without a seal.

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
    """Where the hash is in the file; None if there is none."""
    mark = f'"{KEY}":"'.encode()  # inside another text its quotes would be escaped
    header = _header(file)
    at = header.find(mark)
    return None if at < 0 or len(header) < at + len(mark) + len(BLANK) else 8 + at + len(mark)


def _is_plain(file: BinaryIO) -> bool:
    """Whether it is a safetensors file without a seal, also checking for a seal whose key has a flipped letter."""
    try:
        metadata = json.loads(_header(file)).get("__metadata__", {})
        return not any(len(key) == len(KEY) and len(value) == len(BLANK) for key, value in metadata.items())
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False


def _digest(file: BinaryIO, place: int) -> str:
    """SHA-256 of the file, with zeros in place of its hash."""
    found = hashlib.sha256()
    file.seek(0)
    found.update(file.read(place))
    found.update(BLANK.encode())
    file.seek(place + len(BLANK))
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return found.hexdigest()


def of_json(row: Mapping[str, Any]) -> str:
    """The hash of an object without its seal, independent of the order of its keys."""
    text = json.dumps({key: value for key, value in row.items() if key != KEY}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_broken_json(row: Mapping[str, Any]) -> bool:
    """Whether an object has changed since it was sealed; False for one without a seal."""
    return KEY in row and row[KEY] != of_json(row)
