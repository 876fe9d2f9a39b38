"""Detects for a long-lived reader whether the index has changed, in a few microseconds per check."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.registry.core import RegistryCore
from adapterhub_cl.registry.index import index_errors, open_sqlite
from adapterhub_cl.registry.postgres import CHANNEL, PostgresIndex, connect

if TYPE_CHECKING:
    import psycopg

EVERY_S = 1.0  # how often a database that is neither SQLite nor PostgreSQL is assumed to have changed
PULSE_S = 15.0  # how often a silent connection to a server is asked whether it is alive


class Watch:
    """Whether anything was committed to a hub's index since the last check; use it in one thread, and close it.

    On SQLite this reads the database's own commit counter (`PRAGMA data_version`); a rebuilt index is a new file. On
    PostgreSQL it listens to what each transaction announces; a connection that was lost counts as a change.
    """

    def __init__(self, registry: RegistryCore) -> None:
        self._file, self._where = registry._index.file, registry._index.where
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, ...] | None = None
        self._looked = float("-inf")
        self._server = registry._index.url if isinstance(registry._index, PostgresIndex) else None
        self._listening: psycopg.Connection[Any] | None = None
        self._schema = ""

    @property
    def is_remote(self) -> bool:
        """Whether the index is on a server, which may be out of reach for a while."""
        return self._server is not None

    def changed(self) -> bool:
        """True at the first check.

        Raises:
            IntegrityError: the index is damaged.
            StorageError: the index cannot be opened.
        """
        if self._server is not None:
            with index_errors(self._where):
                return self._heard(self._server)
        if self._file is None:
            now = time.monotonic()
            due = now - self._looked >= EVERY_S
            self._looked = now if due else self._looked
            return due
        with index_errors(self._where):
            now_seen = self._look(self._file)
        changed, self._seen = now_seen != self._seen, now_seen
        return changed

    def _heard(self, url: str) -> bool:
        """Whether a change was announced since the last call, or the connection had to be made anew."""
        now = time.monotonic()
        if self._listening is not None:
            try:
                heard = any(note.payload == self._schema for note in list(self._listening.notifies(timeout=0)))
                if now - self._looked >= PULSE_S:
                    self._listening.execute("SELECT 1")
                    self._looked = now
                return heard
            except Exception:  # of the driver: the server ended, or the network did
                self.close()
        self._listening = connect(url, autocommit=True)
        self._listening.execute(f"LISTEN {CHANNEL}")
        self._schema = str(self._listening.execute("SELECT current_schema()").fetchall()[0][0])
        self._looked = now
        return True

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
        if self._listening is not None:
            with suppress(Exception):  # it may be the connection that has just failed
                self._listening.close()
            self._listening = None
