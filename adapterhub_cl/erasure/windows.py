"""Windows: short pieces of a task's samples and tensors, stored only as hashes, with which a hub can be searched.

A window has two hashes. The upper half of a polynomial hash (mod 2⁶⁴, odd base) can be rolled over a file and finds
candidates. A salted, keyed SHA-256 (HMAC) then decides. In a tombstone the first hash and the lengths are masked with
the same key: with the tombstone but without the key nobody can test a guess, however short the text is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub_cl.types import Example

SAMPLE, TENSOR = "sample", "tensor"
LENGTHS = (64, 48, 32, 24, 16, 12)
LONGEST, SHORTEST, OF_TEXT = LENGTHS[0], LENGTHS[-1], 48
LONG_OUTPUT = 24  # shorter answers are labels and numbers, which occur anywhere
BLOCK = 1 << 18  # bytes hashed at a time
_BASE, _MODULUS = 0x9E3779B97F4A7C15, 1 << 64
_HALF = np.uint64(32)
_KEPT, _TRIED = 2, 8  # windows of each text and tensor to search for, and to choose from
_VARIED = 4  # a tensor's window has at least a quarter as many different bytes as its length
_PIECE = 1 << 20
_PERIOD = 8  # a multiple of every number's size: bytes with this period are one repeated number
_PLAIN = re.compile(rb"[ !#-\[\]-~]+")  # the same in every JSON encoding

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Words = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class Secret:
    """What hashes are made with.

    Attributes:
        salt: stored in the tombstone.
        key: not stored there; empty for tombstones from before there were keys.
    """

    salt: bytes
    key: bytes = b""

    def wrapped(self, found: str) -> str:
        """A keyed hash."""
        return hmac.digest(self.key, found.encode(), "sha256").hex() if self.key else found

    def mask(self, sha: str) -> bytes:
        """Six bytes that cannot be computed without the key."""
        return hmac.digest(self.key, b"mask" + sha.encode(), "sha256")[:6]


@dataclass(frozen=True)
class Window:
    """A piece to search for.

    Attributes:
        length: how many of its first bytes the rolling hash covers, one of `LENGTHS`.
        key: upper half of that hash.
        extent: its length in bytes.
        sha: salted SHA-256 under the key, as hex.
    """

    length: int
    key: int
    extent: int
    sha: str

    @classmethod
    def of(cls, piece: bytes, secret: Secret) -> Window:
        length = next(n for n in LENGTHS if n <= len(piece))
        key = int(rolling(np.frombuffer(piece[:length], np.uint8), [length])[0][0])
        return cls(length, key, len(piece), digest(piece, secret))

    def to_json(self, secret: Secret) -> list[Any]:
        return [*self._masked(secret), self.sha]

    @classmethod
    def from_json(cls, row: Sequence[Any], secret: Secret) -> Window:
        """The reverse of writing it: masking twice restores the value."""
        return cls(*cls(*row)._masked(secret), row[3])

    def _masked(self, secret: Secret) -> tuple[int, int, int]:
        mask = secret.mask(self.sha) if secret.key else bytes(6)
        return self.length ^ mask[0], self.key ^ int.from_bytes(mask[1:5], "big"), self.extent ^ mask[5]

    def under(self, secret: Secret) -> Window:
        """A keyed copy of a window from a tombstone without a key."""
        return Window(self.length, self.key, self.extent, secret.wrapped(self.sha))


@dataclass
class Item:
    """A sample or a tensor.

    Attributes:
        groups: windows to choose from, the better ones first; at most two of each group are searched for.
        state: `searched`, `short` (too few bytes), `constant` (all the same number), or `shared` (what stays has the
            same bytes).
    """

    kind: str
    id: str
    groups: list[list[Window]]
    state: str

    def to_json(self, secret: Secret) -> list[Any]:
        windows = [window.to_json(secret) for group in self.groups for window in group]
        return [self.kind, self.id, self.state, windows]

    @classmethod
    def from_json(cls, row: Sequence[Any], secret: Secret) -> Item:
        kind, name, state, windows = row
        return cls(kind, name, [[Window.from_json(window, secret)] for window in windows], state)

    def under(self, secret: Secret) -> Item:
        """A keyed copy of an item from a tombstone without a key."""
        groups = [[window.under(secret) for window in group] for group in self.groups]
        return Item(self.kind, secret.wrapped(self.id)[:32], groups, self.state)

    def without(self, there: set[Window]) -> Item:
        """A copy with only those windows that do not occur in what stays."""
        if self.state != "searched":
            return self
        groups = [kept for group in self.groups if (kept := [w for w in group if w not in there][:_KEPT])]
        return Item(self.kind, self.id, groups, "searched" if groups else "shared")


def digest(piece: bytes, secret: Secret) -> str:
    """The hash that decides."""
    return secret.wrapped(hashlib.sha256(secret.salt + piece).hexdigest())


def name_of(text: str, secret: Secret) -> str:
    """The identifier of an item."""
    inner = hashlib.sha256(secret.salt + text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return secret.wrapped(inner)[:32]


@cache
def _powers() -> tuple[Words, Words]:
    """The powers of the base, and of its inverse."""
    found = []
    for base in (_BASE, pow(_BASE, -1, _MODULUS)):
        powers = np.full(BLOCK + LONGEST, base, np.uint64)
        powers[0] = 1
        found.append(np.cumprod(powers, dtype=np.uint64))
    return found[0], found[1]


def rolling(data: Bytes, lengths: Sequence[int]) -> list[Words]:
    """For each length the half hashes of all windows of that length, in order; empty if the data are shorter.

    Args:
        data: at most `BLOCK + LONGEST` bytes.
    """
    powers, inverse = _powers()
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[: len(data)], out=sums[1:])
    found = []
    for length in lengths:
        if length > len(data):
            found.append(np.zeros(0, np.uint64))
            continue
        found.append(((sums[length:] - sums[:-length]) * inverse[: len(data) - length + 1]) >> _HALF)
    return found


# -- texts ---------------------------------------------------------------------------------------------------


def of_sample(example: Example, secret: Secret) -> Item:
    """A sample: its input and those of its answers that are long enough."""
    answer = example.answer or ""
    long = [text for text in (answer, example.rejected) if len(text.encode("utf-8", "surrogatepass")) >= LONG_OUTPUT]
    name = name_of("\0".join([example.text, answer, example.instruction]), secret)
    said = [turn.content for turn in example.turns] or [example.input]  # files store the turns separately
    texts = [*said, *long]
    groups = [[Window.of(piece, secret) for piece in pieces] for text in texts for pieces in _forms(text)]
    return Item(SAMPLE, name, groups, "searched" if groups else "short")


def _forms(text: str) -> list[list[bytes]]:
    """Pieces to choose from for each encoding that the text may have, best first."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) < SHORTEST:
        return []
    stretches = [m.span() for m in _PLAIN.finditer(raw) if m.end() - m.start() >= OF_TEXT]
    if stretches:  # these bytes are the same in every encoding of the text
        starts = [start for first, end in stretches for start in _spread(first, end - OF_TEXT)]
        return [[raw[start : start + OF_TEXT] for start in _ends_first(starts)[:_TRIED]]]
    forms = dict.fromkeys([raw, *(_escaped(text, ascii_only) for ascii_only in (False, True))])
    found = []
    for form in forms:
        starts = _spread(0, max(0, len(form) - OF_TEXT))
        found.append([form[start : start + OF_TEXT] for start in _ends_first(starts)[:_TRIED]])
    return found


def _escaped(text: str, ascii_only: bool) -> bytes:
    return json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode("utf-8", "surrogatepass")


def _spread(first: int, last: int) -> list[int]:
    """Up to this many evenly spaced positions between two, including both."""
    count = min(_TRIED, last - first + 1)
    return [first + (last - first) * k // max(1, count - 1) for k in range(count)]


def _ends_first(places: list[int]) -> list[int]:
    """The same positions, alternating between start and end."""
    return list(dict.fromkeys(place for pair in zip(places, reversed(places), strict=True) for place in pair))


# -- tensors -------------------------------------------------------------------------------------------------


def of_tensors(path: Path, shown: str, secret: Secret) -> Iterator[Item]:
    """The tensors of a safetensors file, read in pieces; any other file counts as one tensor.

    Args:
        shown: its path relative to the hub, which distinguishes its tensors from those of other files.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for number, (start, end) in enumerate(_places(file, size)):
            name = name_of(f"{shown.encode('utf-8', 'surrogateescape').decode('latin-1')}/{number}", secret)
            length = next((n for n in LENGTHS if n <= end - start), 0)
            if not length:
                yield Item(TENSOR, name, [], "short")
                continue
            pieces = list(_varied(file, start, end, length))
            groups = [[Window.of(piece, secret) for piece in dict.fromkeys(pieces)]] if pieces else []
            yield Item(TENSOR, name, groups, "searched" if groups else "constant")


def _places(file: Any, size: int) -> list[tuple[int, int]]:
    """The byte ranges of the tensors: first byte, and the one after the last."""
    try:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError("not a header")
        header = json.loads(file.read(length))
        found = [row["data_offsets"] for name, row in header.items() if name != "__metadata__"]
        places = sorted((8 + length + int(start), 8 + length + int(end)) for start, end in found)
        if any(not 8 <= start <= end <= size for start, end in places):
            raise ValueError("not the place of a tensor")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [(0, size)]
    return places


def _varied(file: Any, start: int, end: int, length: int) -> Iterator[bytes]:
    """Pieces of a tensor that are not one repeated number."""
    found = 0
    for place in _ends_first(_spread(start, end - length)):
        file.seek(place)
        piece = file.read(length)
        if len(set(piece)) * _VARIED >= length:
            found += 1
            yield piece
    place = start
    while not found and place < end:  # almost all of it is one number: look everywhere
        file.seek(place)
        data = np.frombuffer(file.read(min(_PIECE, end - place)), np.uint8)
        for at in np.flatnonzero(data[_PERIOD:] != data[:-_PERIOD])[: _TRIED * length : length]:
            first = max(0, min(int(at) + _PERIOD - length // 2, len(data) - length))
            piece = data[first : first + length].tobytes()
            if len(piece) == length and piece[_PERIOD:] != piece[:-_PERIOD]:
                found += 1
                yield piece
        place += _PIECE
