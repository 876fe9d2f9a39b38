"""A PostgreSQL server of the tests' own, in a temporary folder; tests that need one are skipped where there is none."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest


@dataclass
class PostgresServer:
    """A server that runs.

    Attributes:
        folder: its data are below it.
        user: the superuser's name; nobody needs a password.
    """

    programs: Path
    folder: Path
    port: int
    user: str = "owner"
    _count: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, database: str = "postgres", user: str = "") -> str:
        return f"postgresql://{user or self.user}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a database without tables."""
        name = f"hub{next(self._count)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, text: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(text)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c fsync=off -c listen_addresses=127.0.0.1"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of the server's programs; `initdb` refuses root, so root hands it to the user `postgres`."""
        command = [str(self.programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    there = shutil.which("initdb")
    return Path(there).resolve().parent if there else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg", reason="needs psycopg")
    programs = _programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's programs (apt-get install postgresql)")
    if os.geteuid() == 0 and not (shutil.which("setpriv") and Path("/var/lib/postgresql").exists()):
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    memory = Path("/dev/shm")
    within = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pg-", dir=within) as place, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = PostgresServer(programs, Path(place), free.getsockname()[1])
        if os.geteuid() == 0:
            shutil.chown(place, "postgres", "postgres")
        free.close()
        server._run("initdb", "-D", f"{place}/data", "-A", "trust", "-U", server.user, "--no-sync", "-E", "UTF8")
        server.start()
        try:
            yield server
        finally:
            server.stop()


__all__ = ["PostgresServer", "postgres"]
