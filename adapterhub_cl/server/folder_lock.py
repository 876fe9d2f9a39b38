"""The lock of a folder that several servers write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from adapterhub_cl.registry.files import storage_errors


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder if it is missing, and hold its lock.

    Raises:
        StorageError: the disk refuses.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
