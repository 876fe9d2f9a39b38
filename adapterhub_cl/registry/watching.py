"""Detects for a long-lived reader whether the index has changed, in a few microseconds per check."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from adapterhub_cl.registry.core import RegistryCore
from adapterhub_cl.registry.index import index_errors, open_sqlite

EVERY_S = 1.0  # how often a database other than SQLite is assumed to have changed


class Watch:
    """Whether anything was committed to a hub's index since the last check; use it in one thread, and close it.

    On SQLite this reads the database's own commit counter (`PRAGMA data_version`); a rebuilt index is a new file.
    """

    def __init__(self, registry: RegistryCore) -> None:
        self._file, self._where = registry._index.file, registry._index.where
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, ...] | None = None
        self._looked = float("-inf")

    def changed(self) -> bool:
        """True at the first check.

        Raises:
            IntegrityError: the index is damaged.
            StorageError: the index cannot be opened.
        """
        if self._file is None:
            now = time.monotonic()
            due = now - self._looked >= EVERY_S
            self._looked = now if due else self._looked
            return due
        with index_errors(self._where):
            now_seen = self._look(self._file)
        changed, self._seen = now_seen != self._seen, now_seen
        return changed

    def _look(self, file: Path) -> tuple[int, ...]:
        try:
            inode = file.stat().st_ino
        except OSError:
            inode = -1
        if self._connection is None or self._seen is None or inode != self._seen[0]:
            self.close()
            self._connection = open_sqlite(file)
        return inode, int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        self._seen = None  # counters of two connections are not comparable: a new connection counts as a change
        if self._connection is not None:
            self._connection.close()
            self._connection = None
