"""The search: scans every byte of every file of a hub for the windows that a tombstone lists."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adapterhub_cl.erasure.windows import BLOCK, LONGEST, Bytes, Secret, Window, digest, rolling
from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry import Registry

_SLOTS = 1 << 20


@dataclass(frozen=True)
class Hit:
    """Where a window was found. `path` is relative to the hub if it is inside."""

    path: str
    offset: int
    window: Window


@dataclass
class Searched:
    """How much was scanned."""

    files: int = 0
    bytes: int = 0


class Needles:
    """Windows prepared for the search.

    Args:
        windows: each with the secret that its hash was made with.
    """

    def __init__(self, windows: Iterable[tuple[Window, Secret]]) -> None:
        self.by_length: dict[int, dict[int, list[tuple[Window, Secret]]]] = {}
        for window, secret in windows:
            self.by_length.setdefault(window.length, {}).setdefault(window.key, []).append((window, secret))
        self.lengths = sorted(self.by_length)
        self.slots = []
        for length in self.lengths:
            slots = np.zeros(_SLOTS, np.bool_)
            slots[np.array(list(self.by_length[length]), np.uint64) & np.uint64(_SLOTS - 1)] = True
            self.slots.append(slots)

    def scan(self, file: BinaryIO, searched: Searched) -> Iterator[tuple[int, Window]]:
        """Offset and window of everything found in a file; reads it in pieces."""
        tail, start, ended = b"", 0, not self.lengths
        while not ended:
            block = file.read(BLOCK)
            searched.bytes += len(block)
            ended = len(block) < BLOCK
            data = tail + block
            # a window that begins in the last bytes may end in the next piece, and is searched for there
            usable = len(data) if ended else len(data) - LONGEST + 1
            yield from ((start + at, window) for at, window in self._of(data, usable))
            tail = data[usable:]
            start += usable

    def _of(self, data: bytes, usable: int) -> Iterator[tuple[int, Window]]:
        view: Bytes = np.frombuffer(data, np.uint8)
        for length, slots, keys in zip(self.lengths, self.slots, rolling(view, self.lengths), strict=True):
            known = self.by_length[length]
            for at in np.flatnonzero(slots[keys[:usable] & np.uint64(_SLOTS - 1)]):
                for window, secret in known.get(int(keys[at]), ()):
                    piece = data[int(at) : int(at) + window.extent]
                    if len(piece) == window.extent and digest(piece, secret) == window.sha:
                        yield int(at), window


def hub_files(registry: Registry) -> Iterator[tuple[str, Path]]:
    """Every file of a hub with its displayed path, including a store or an index elsewhere.

    Links are listed and not followed: what they point to does not belong to the hub.
    """
    hub = registry.path
    seen: set[Path] = set()
    for root in (hub, registry.adapters_dir):
        for folder, _, names in os.walk(root):
            for name in sorted(names):
                path = Path(folder) / name
                if path.is_file() and not path.is_symlink() and path.absolute() not in seen:
                    seen.add(path.absolute())
                    yield shown(path, hub), path
    for path in registry.index_files():
        if path.absolute() not in seen:
            seen.add(path.absolute())
            yield shown(path, hub), path


def shown(path: Path, hub: Path) -> str:
    """A path as messages show it: relative to the hub if it is inside."""
    return path.relative_to(hub).as_posix() if path.is_relative_to(hub) else str(path)


def search(registry: Registry, needles: Needles) -> tuple[list[Hit], Searched]:
    """Search for windows in every file of a hub, in its shared store, and in the rows of an index on a server.

    Raises:
        StorageError: a file cannot be read.
    """
    hits, searched = search_files(hub_files(registry), needles)
    for name, opened in registry.shared.all_files() if registry.shared is not None else ():
        with opened as file:
            searched.files += 1
            hits += [Hit(name, offset, window) for offset, window in needles.scan(file, searched)]
    for text in registry.index_texts():
        found = needles.scan(io.BytesIO(text.encode("utf-8", "surrogatepass")), searched)
        hits += [Hit("the index", offset, window) for offset, window in found]
    return hits, searched


def search_files(files: Iterable[tuple[str, Path]], needles: Needles) -> tuple[list[Hit], Searched]:
    """Search for windows in files, each with its displayed name.

    Raises:
        StorageError: a file cannot be read.
    """
    searched, hits = Searched(), list[Hit]()
    for name, path in files:
        try:
            with path.open("rb") as file:
                searched.files += 1
                hits += [Hit(name, offset, window) for offset, window in needles.scan(file, searched)]
        except FileNotFoundError:
            continue  # it was deleted during the search
        except OSError as error:
            said = f"{path} cannot be read ({error.strerror}), so it could not be searched"
            raise StorageError(said, "check its owner and permissions, and try again") from error
    return hits, searched
