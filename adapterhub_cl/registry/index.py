"""The index: where its rows are, how they are read, and how writes are made safe.

Reads are portable SQL text. On SQLite they go through the standard library's driver and not through SQLAlchemy,
whose import alone takes 0.2 s, half of what `cl-adapter list` may take cold; on any other database the same text
goes through SQLAlchemy. Writes always go through SQLAlchemy Core, one at a time for the whole hub: under the hub's
file lock (which also guards the swap of a rebuilt index) and, on SQLite, after BEGIN IMMEDIATE.
"""

from __future__ import annotations

import logging
import re
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterHubError, HubError, IntegrityError, StorageError
from adapterhub_cl.registry import changes
from adapterhub_cl.registry.files import storage_errors

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from sqlalchemy import Connection, Engine

# A copy, so that comparing does not import Alembic. A test checks that it matches the migrations.
KNOWN_REVISIONS = ("0001", "0002")
HEAD = KNOWN_REVISIONS[-1]

BUSY_TIMEOUT_S = 30.0
LOCK_TIMEOUT_S = 120.0
REBUILD = "rebuild it from the manifests: cl-adapter verify --rebuild-index"

LOG = logging.getLogger("adapterhub_cl")
Row = tuple[Any, ...]
Query = Callable[..., list[Row]]


class Index:
    """The index of one hub. Holds no open connection between calls, so it needs no closing.

    Args:
        hub: the hub's directory; the lock file is there, and relative SQLite paths start there.
        url: SQLAlchemy URL of the database.
    """

    def __init__(self, hub: Path, url: str) -> None:
        self.hub, self.url = hub, url
        self.file = hub / url.removeprefix("sqlite:///") if url.startswith("sqlite:///") else None
        self.where = re.sub(r"//[^/@]*@", "//…@", url) if self.file is None else str(self.file)
        self._engine: Engine | None = None
        self._lock: BaseFileLock | None = None

    # -- reading ---------------------------------------------------------------------------------

    def reading(self) -> AbstractContextManager[Query]:
        """One consistent view: `with index.reading() as query: query("SELECT … WHERE name = :name", name=…)`.

        Raises:
            IntegrityError: the index is damaged.
            StorageError: the index cannot be opened.
        """
        return self._reading_sqlite(self.file) if self.file is not None else self._reading_engine()

    @contextmanager
    def _reading_sqlite(self, file: Path) -> Iterator[Query]:
        with index_errors(self.where), closing(open_sqlite(file)) as connection:
            connection.execute("BEGIN")
            yield lambda sql, **values: connection.execute(sql, values).fetchall()

    @contextmanager
    def _reading_engine(self) -> Iterator[Query]:
        from sqlalchemy import text

        with index_errors(self.where), self.engine().connect() as connection:
            yield lambda sql, **values: [tuple(row) for row in connection.execute(text(sql), values)]

    # -- writing ---------------------------------------------------------------------------------

    @contextmanager
    def lock(self, timeout: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the hub's file lock; calls may be nested within one thread.

        Args:
            timeout: how long to wait for another process, in seconds.

        Raises:
            StorageError: the lock file cannot be created (a read-only hub), or another process holds the lock.
        """
        from filelock import FileLock, Timeout

        if self._lock is None:
            self._lock = FileLock(self.hub / ".lock", timeout=LOCK_TIMEOUT_S)
        try:
            with storage_errors(self.hub):
                self._lock.acquire(timeout=timeout)
        except Timeout as error:
            raise StorageError(
                f"another process has kept {self.hub} locked for {timeout:.0f} s",
                "wait for it to end, or stop it, and try again",
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One write transaction under the hub's lock: committed at the end of the block, rolled back on any error.

        Raises:
            IntegrityError: the index is damaged.
            StorageError: the disk cannot be written; the message says whether anything was changed.
        """
        with changes.operation(), self.lock(), index_errors(self.where):
            before, failed = -1, None
            with self._session() as connection:
                transaction = connection.begin()
                try:
                    before = self._stamp(connection)
                    yield connection
                except BaseException:
                    with suppress(Exception):  # closing the connection rolls it back too
                        transaction.rollback()
                    raise
                try:
                    transaction.commit()
                except Exception as error:  # `_judge` decides once the connection is closed
                    failed = error
            if failed is not None:
                self._judge(failed, before)
            changes.happened()

    def _session(self) -> AbstractContextManager[Connection]:
        """The connection for one write transaction."""
        return self.engine().connect()

    def _stamp(self, connection: Connection) -> int:
        """Number the transaction in the database itself, so that a later check can tell whether it was committed."""
        if self.file is None:
            return -1
        before = int(connection.exec_driver_sql("PRAGMA user_version").scalar() or 0)
        connection.exec_driver_sql(f"PRAGMA user_version = {(before + 1) % 2**31}")
        return before

    def _judge(self, failed: Exception, before: int) -> None:
        """Return if a commit that raised an error went through all the same; raise if it did not, or if unknown.

        On a full disk SQLite can write a transaction and then fail to confirm it.
        """
        saved = self._was_saved(before)
        if saved:
            LOG.warning("an error was reported while writing %s, but the change was saved", self.where)
            return
        if saved is not None:
            raise failed
        try:
            with index_errors(self.where):
                raise failed
        except StorageError as error:
            error.message = error.message.removesuffix(changes.told())
            error.message += "; whether the change was saved is unknown until the index can be read again"
            error.args = (error.message,)
            raise

    def _was_saved(self, before: int) -> bool | None:
        """Whether the transaction that `_stamp` numbered is in the database; None if nobody can tell."""
        if self.file is not None:
            with suppress(AdapterHubError), self.reading() as query:
                return int(query("PRAGMA user_version")[0][0]) != before
        return None

    def engine(self) -> Engine:
        """The SQLAlchemy engine, created at first use; a connection lives as long as its transaction."""
        if self._engine is None:
            self._engine = _make_engine(self.url, self.file)
        return self._engine

    # -- schema ----------------------------------------------------------------------------------

    def revision(self) -> str | None:
        """The schema's revision; None if the index is missing or blank."""
        if self.file is not None:
            if not self.file.exists():
                return None
            self.check_file()
            with self.reading() as query:
                if not query("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"):
                    return None
                rows = query("SELECT version_num FROM alembic_version")
        else:
            from sqlalchemy import inspect

            with index_errors(self.where):
                if not inspect(self.engine()).has_table("alembic_version"):
                    return None
            with self.reading() as query:
                rows = query("SELECT version_num FROM alembic_version")
        return str(rows[0][0]) if rows else None

    def check_file(self) -> None:
        """Raise StorageError if a directory is in the index's place."""
        if self.file is not None and self.file.is_dir():
            away = shlex.quote(str(self.file))
            raise StorageError(
                f"the index {self.file} is a directory",
                f"move it away, and a new index is created: mv {away} {away}.away",
            )

    def check_known(self, revision: str | None) -> None:
        """Raise HubError for a schema that this version does not know."""
        if revision is not None and revision not in KNOWN_REVISIONS:
            raise HubError(
                f"the index of {self.hub} was made by a newer version (schema {revision}, this one knows {HEAD})",
                "upgrade: pip install --upgrade adapterhub-cl",
            )

    def migrate(self) -> None:
        """Bring the schema up to date, in one transaction; does nothing if it already is.

        Raises:
            HubError: the schema is newer than this version.
        """
        with self.lock():
            found = self.revision()
            self.check_known(found)
            if found != HEAD:
                from adapterhub_cl.registry.migrations import upgrade

                with self.writing() as connection:
                    upgrade(connection)
                    self._complete_schema(connection)

    def _complete_schema(self, connection: Connection) -> None:
        """Add to a schema that was just brought up to date what only this kind of database needs."""


def open_sqlite(file: Path) -> sqlite3.Connection:
    """Open an existing SQLite file; read-only if its directory cannot be written."""
    uri = file.absolute().as_uri()
    try:
        return _connect(f"{uri}?mode=rw")
    except sqlite3.OperationalError:
        wal = file.with_name(file.name + "-wal")
        if not file.is_file() or (wal.exists() and wal.stat().st_size):
            raise  # rows that are still in the write-ahead log would be missing
        # A WAL database needs its side files; if nobody can write to the directory, no other writer is active either.
        return _connect(f"{uri}?immutable=1")


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")  # the first statement opens the file
    except BaseException:
        connection.close()
        raise
    return connection


def _make_engine(url: str, file: Path | None) -> Engine:
    from sqlalchemy import URL, create_engine, event
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(
            url if file is None else URL.create("sqlite", database=str(file.absolute())), poolclass=NullPool
        )
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise HubError(f"the index URL cannot be used: {error}", "correct [index] url in hub.toml") from error
    if file is None:
        return engine

    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # stop the driver from opening transactions: `begin` below does that
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit that was reported survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    return engine


@contextmanager
def index_errors(where: str, what: str = "index", damaged: str = REBUILD) -> Iterator[None]:
    """Turn the database's errors inside the block into this project's errors.

    Args:
        what: the database's name in messages.
        damaged: what to do if it is damaged.
    """
    try:
        yield
    except Exception as error:
        # SQLAlchemy wraps the driver's error as `orig`; checking for it needs no import of SQLAlchemy.
        cause = error if isinstance(error, sqlite3.Error) else getattr(error, "orig", None)
        if isinstance(cause, sqlite3.Error):
            raise _translate(cause, f"the {what} {where}", damaged) from error
        driver = error if cause is None else cause
        if type(driver).__module__.partition(".")[0] == "psycopg":
            from adapterhub_cl.registry.postgres import told

            raise told(driver, f"the {what} {where}") from error
        if cause is None or not type(error).__module__.startswith("sqlalchemy."):
            raise
        said = str(cause).strip().partition("\n")[0]
        raise StorageError(
            f"the {what} {where} cannot be used: {said}", "check that its server runs and accepts your login"
        ) from error


def _translate(cause: sqlite3.Error, where: str, damaged: str) -> Exception:
    said = str(cause)
    if "disk is full" in said:
        return StorageError(f"no space left for {where}{changes.told()}", "free some space: cl-adapter gc")
    if "readonly" in said or "unable to open" in said or "disk I/O" in said:
        hint = "check its owner and permissions, and that the disk has space left"
        return StorageError(f"{where} cannot be opened or written: {said}{changes.told()}", hint)
    if "locked" in said:
        return StorageError(f"another process keeps {where} busy", "wait for it to end and try again")
    return IntegrityError(f"{where} is damaged: {said}", damaged)
