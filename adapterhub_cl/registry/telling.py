"""What is told in the log about the files beside the index: what they could not be made to say, and what they say that
cannot be used."""

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
    """Tell in the log where the disk refuses inside the block: the index has it, so nothing is lost."""
    try:
        with files.storage_errors(name):
            yield
    except (StorageError, OSError) as error:
        said = error.message if isinstance(error, StorageError) else str(error)
        said = said.partition(";")[0]
        _LOG.warning("%s could not be written (%s); that is made up for when the hub is next opened", name, said)


class Warnings:
    """What is left out of a file: one line in the log for each, but no thousands of them."""

    def __init__(self, file: str) -> None:
        self._file, self._count = file, 0

    def __call__(self, what: str) -> None:
        self._count += 1
        if self._count <= _MOST_WARNINGS:
            _LOG.warning("left out of the index: %s of %s", what, self._file)

    def end(self) -> None:
        """Say how many more there were."""
        if self._count > _MOST_WARNINGS:
            _LOG.warning("left out of the index: %d more entries of %s", self._count - _MOST_WARNINGS, self._file)
