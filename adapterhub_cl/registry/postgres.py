"""An index on a PostgreSQL server, which several machines use at once.

Reads go through psycopg directly. Writes go through SQLAlchemy in the session that holds the hub's advisory lock: if
the connection is lost, so is the lock, and the transaction fails with it.
See docs/decisions/053-index-in-postgresql.md.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterHubError, HubError, IntegrityError, StorageError, UsageError
from adapterhub_cl.registry import changes
from adapterhub_cl.registry.index import LOCK_TIMEOUT_S, REBUILD, Index, Query, index_errors

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection, Engine

CHANNEL = "adapterhub_cl"  # of NOTIFY; the payload is the schema in which the hub's tables are
OLDEST = 130000  # the first server whose transactions have a status that can be asked for (13)
IDENTITY_FORMAT = 1
_LOCK = 0x41434C  # the first half of the advisory lock's key; the second one is made of the schema's name
_SCHEME = re.compile(r"(postgresql|postgres)(\+psycopg)?://")
_PATIENCE_S = 10.0  # how long a commit whose answer was lost may take to end


class PostgresIndex(Index):
    """The index of one hub on a server. Holds no connection between calls, except while its lock is held.

    Args:
        url: `postgresql://user@host/database`, as libpq reads it, without a password.
    """

    def __init__(self, hub: Path, url: str) -> None:
        super().__init__(hub, url)
        self.where = url.partition("?")[0]
        self._held = threading.local()

    # -- reading ---------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Query]:
        """One consistent view; see `Index.reading`."""
        from psycopg import IsolationLevel

        with index_errors(self.where), closing(connect(self.url)) as connection:
            connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
            yield lambda sql, **values: connection.execute(_bound(sql), values or None).fetchall()  # type: ignore[call-overload]

    # -- writing ---------------------------------------------------------------------------------

    @contextmanager
    def lock(self, timeout: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the hub's file lock and, on the server, its advisory lock; calls may be nested within one thread.

        Raises:
            StorageError: another process, here or on another machine, holds it; or the server cannot be reached.
        """
        with super().lock(timeout):
            if getattr(self._held, "connection", None) is not None:
                yield
                return
            with index_errors(self.where):
                connection = self.engine().connect()
            try:
                with index_errors(self.where):
                    self._take(connection, timeout)
                self._held.connection = connection
                yield
            finally:
                self._held.connection = None
                with suppress(Exception):  # the server releases the lock with the session
                    if not connection.invalidated:
                        connection.rollback()
                        connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")
                        connection.commit()
                with suppress(Exception):
                    connection.close()

    def _take(self, connection: Connection, timeout: float) -> None:
        key = f"({_LOCK}, hashtext(current_schema()))"
        if timeout <= 0:
            taken = connection.exec_driver_sql(f"SELECT pg_try_advisory_lock{key}").scalar()
        else:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(timeout * 1000)}")
            connection.exec_driver_sql(f"SELECT pg_advisory_lock{key}")
            taken = True
        connection.commit()
        if not taken:
            raise StorageError(f"another machine is writing to {self.where}", "wait for it to end and try again")

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        connection: Connection = self._held.connection
        if connection.invalidated:  # SQLAlchemy would connect again, without the lock
            raise StorageError(
                f"the connection to the index {self.where} was lost{changes.told()}", "check the network and try again"
            )
        yield connection

    def _stamp(self, connection: Connection) -> int:
        """Announce the change, which listeners hear of at the commit, and number the transaction."""
        sql = f"SELECT pg_notify('{CHANNEL}', current_schema()), pg_current_xact_id()::text"
        return int(connection.exec_driver_sql(sql).one()[1])

    def _was_saved(self, before: int) -> bool | None:
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            try:
                with self.reading() as query:
                    ((said,),) = query(f"SELECT pg_xact_status('{before}'::xid8)")
            except AdapterHubError:
                return None
            if said != "in progress":
                return {"committed": True, "aborted": False}.get(said)
            time.sleep(0.1)
        return None

    def engine(self) -> Engine:
        if self._engine is None:
            from sqlalchemy import create_engine
            from sqlalchemy.pool import NullPool

            self._engine = create_engine(
                "postgresql+psycopg://", creator=lambda: connect(self.url), poolclass=NullPool, use_native_hstore=False
            )
        return self._engine

    # -- schema ----------------------------------------------------------------------------------

    def revision(self) -> str | None:
        with self.reading() as query:
            if query("SELECT to_regclass('alembic_version')::text") == [(None,)]:
                return None
            rows = query("SELECT version_num FROM alembic_version")
        return str(rows[0][0]) if rows else None

    def _complete_schema(self, connection: Connection) -> None:
        """Add what only a server needs: texts that sort by bytes, as in SQLite, and the hub's identity."""
        from adapterhub_cl.registry.schema import metadata

        for table in metadata.sorted_tables:
            texts = [column.name for column in table.columns if str(column.type) == "TEXT"]
            steps = ", ".join(f'ALTER COLUMN {name} TYPE TEXT COLLATE "C"' for name in texts)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} {steps}")
        connection.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS hub_identity (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
        )

    def rewrite_tables(self, patience_s: float) -> None:
        """Write all tables anew, without the rows that were deleted.

        Args:
            patience_s: how long to wait for readers of a table, in seconds.
        """
        from adapterhub_cl.registry.schema import metadata

        with self.lock(), index_errors(self.where), closing(connect(self.url, autocommit=True)) as connection:
            connection.execute(f"SET lock_timeout = {int(patience_s * 1000)}".encode())
            for table in metadata.sorted_tables:
                connection.execute(f"VACUUM (FULL) {table.name}".encode())

    # -- identity --------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """Which hub the database belongs to: `created_at`, `fingerprint`, `quantization`, `store`; empty if none yet.

        Raises:
            HubError: a newer version wrote it.
            IntegrityError: it cannot be read.
        """
        with self.reading() as query:
            if query("SELECT to_regclass('hub_identity')::text") == [(None,)]:
                return {}
            rows = dict(query("SELECT key, value FROM hub_identity"))
        try:
            found = {key: json.loads(text) for key, text in rows.items()}
        except ValueError as error:
            raise IntegrityError(f"the table hub_identity of {self.where} is damaged", "restore a backup") from error
        if found and found.get("format") != IDENTITY_FORMAT:
            raise HubError(
                f"the index {self.where} was made by a newer version (identity format {found.get('format')})",
                "upgrade: pip install --upgrade adapterhub-cl",
            )
        return found

    def introduce(self, identity: Mapping[str, Any]) -> None:
        """Record which hub the database belongs to."""
        from sqlalchemy import text

        with self.writing() as connection:
            for key, value in {"format": IDENTITY_FORMAT, **identity}.items():
                sql = "INSERT INTO hub_identity VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = :value"
                connection.execute(text(sql), {"key": key, "value": json.dumps(value)})


def is_server(url: str) -> bool:
    """Whether the URL is one of a PostgreSQL server."""
    return _SCHEME.match(url) is not None


def open_index(hub: Path, url: str) -> Index:
    """The index of a hub, by its URL."""
    return PostgresIndex(hub, _SCHEME.sub("postgresql://", url)) if is_server(url) else Index(hub, url)


def check_url(url: str) -> str:
    """The URL of a server as it is stored in `hub.toml`.

    Raises:
        UsageError: it is another kind of URL, cannot be read, or contains a password.
    """
    if not is_server(url):
        hint = "give postgresql://user@host/database, or leave --index out to keep the index in the hub's folder"
        raise UsageError(f"{_without_password(url)!r} is not the address of a PostgreSQL server", hint)
    url = _SCHEME.sub("postgresql://", url)
    driver = _driver()
    try:
        parts = driver.conninfo.conninfo_to_dict(url)
    except driver.Error as error:
        said = str(error).strip().partition("\n")[0]
        raise UsageError(f"the index URL cannot be read: {said}", "use postgresql://user@host/database") from error
    if "password" in parts or "sslpassword" in parts:
        raise UsageError(
            f"the index URL {_without_password(url)} contains a password, which would be stored in hub.toml",
            "leave it out, and put it into ~/.pgpass or the variable PGPASSWORD",
        )
    return url


def connect(url: str, *, autocommit: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
    """A new connection. psycopg's errors are raised as they are: see `index_errors`."""
    driver = _driver()
    given = driver.conninfo.conninfo_to_dict(url)
    usual = {"connect_timeout": 10, "application_name": "cl-adapter", "keepalives_idle": 30, "keepalives_interval": 10}
    more: dict[str, Any] = {key: value for key, value in usual.items() if key not in given}
    connection: psycopg.Connection[tuple[Any, ...]] = driver.connect(
        url, autocommit=autocommit, prepare_threshold=None, client_encoding="utf8", keepalives_count=3, **more
    )
    if connection.info.server_version < OLDEST:
        version = connection.info.server_version // 10000
        connection.close()
        raise HubError(f"the index {url.partition('?')[0]} is on PostgreSQL {version}", "use PostgreSQL 13 or newer")
    return connection


def told(error: Exception, where: str) -> AdapterHubError:
    """What an error of the driver means to the user, in one line."""
    state, said = str(getattr(error, "sqlstate", None) or ""), _first(str(error))
    if state in ("42P01", "42703", "XX001", "XX002"):  # a table or column is missing, or a page is damaged
        return IntegrityError(f"{where} is damaged: {said}", REBUILD)
    if state == "55P03":
        hint = "wait for it to end, or stop it, and try again"
        return StorageError(f"another process keeps {where} locked", hint)
    if state == "42501":
        hint = "ask its owner for: GRANT USAGE, CREATE ON SCHEMA public TO you, and for the rights on its tables"
        return StorageError(f"no permission in {where}: {said}{changes.told()}", hint)
    if state == "53100":
        return StorageError(f"no space left for {where}{changes.told()}", "free some space on the server")
    hint = "check that its server runs and accepts your login"
    if state == "3D000" or re.search(r'database ".*" does not exist', said):
        hint = "create it: createdb NAME"
    elif state.startswith("28") or "password" in said:
        hint = "put the password into ~/.pgpass or the variable PGPASSWORD, and check the user's name"
    elif state == "25006":
        hint = "it is a standby or read-only: use the primary server"
    return StorageError(f"{where} cannot be used: {said}{changes.told()}", hint)


def _first(said: str) -> str:
    """The line of a driver's message that says what is wrong."""
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    tries = [line.removeprefix("- ") for line in lines if line.startswith("- ")]  # several addresses were tried
    return (tries or lines or ["unknown"])[-1 if tries else 0].removeprefix("connection failed: ")


def _driver() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as error:
        raise UsageError(
            "an index in PostgreSQL needs the package psycopg", "pip install 'adapterhub-cl[postgres]'"
        ) from error
    return psycopg


def _without_password(url: str) -> str:
    return re.sub(r"(password=)[^&]*", r"\1…", re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:…@", url))


@lru_cache(maxsize=256)
def _bound(sql: str) -> bytes:
    """Portable SQL text with `:name` parameters in psycopg's own style; text without parameters stays as it is."""
    bound, count = re.subn(r"(?<![:\w]):([a-z_]+)\b", r"%(\1)s", sql.replace("%", "%%"))
    return (bound if count else sql).encode()
