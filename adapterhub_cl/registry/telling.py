"""Log messages about the files beside the index: failures to write them, and invalid entries in them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry import files

_MOST_WARNINGS = 20
_LOG = logging.getLogger("adapterhub_cl")


@contextmanager
def logged(name: str) -> Iterator[None]:
    """Log a disk error inside the block instead of raising it: the index has the data, so nothing is lost."""
    try:
        with files.storage_errors(name):
            yield
    except (StorageError, OSError) as error:
        said = error.message if isinstance(error, StorageError) else str(error)
        said = said.partition(";")[0]
        _LOG.warning("%s could not be written (%s); it is updated when the hub is next opened", name, said)


class Warnings:
    """Logs what is skipped in a file, one line each, up to a limit."""

    def __init__(self, file: str) -> None:
        self._file, self._count = file, 0

    def __call__(self, what: str) -> None:
        self._count += 1
        if self._count <= _MOST_WARNINGS:
            _LOG.warning("skipped %s of %s", what, self._file)

    def end(self) -> None:
        if self._count > _MOST_WARNINGS:
            _LOG.warning("skipped %d more entries of %s", self._count - _MOST_WARNINGS, self._file)
