"""Which rows a version was trained on, as hashes, so that forgetting a task finds every other version that saw them.

`seen.bin` has eight bytes of the SHA-256 of each row, sorted. A row is identified by its input, ignoring case and
spacing, as in `replay drop`. The file stays in the hub: exports do not include it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from adapterhub_cl.samples.store import sample_key
from adapterhub_cl.types import Example

FILE_NAME = "seen.bin"
_BYTES = 8


def row_hash(key: tuple[str, str]) -> bytes:
    return hashlib.sha256("\0".join(key).encode("utf-8", "surrogatepass")).digest()[:_BYTES]


def write(folder: Path, examples: Iterable[Example]) -> None:
    """Record the rows that a version was trained on."""
    (folder / FILE_NAME).write_bytes(b"".join(sorted({row_hash(sample_key(example)) for example in examples})))


def read(folder: Path) -> frozenset[bytes]:
    """The rows that a version was trained on; empty if they were not recorded."""
    path = folder / FILE_NAME
    if path.is_symlink() or not path.is_file():
        return frozenset()
    data = path.read_bytes()
    return frozenset(data[at : at + _BYTES] for at in range(0, len(data) - _BYTES + 1, _BYTES))
