"""Alembic migrations of the index: append-only, run in-process, each run one transaction."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def config(connection: Connection | None = None) -> Config:
    """Alembic's settings, built in code; the connection's transaction is the caller's."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    settings.attributes["connection"] = connection
    return settings


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the schema behind the connection to a revision, inside the connection's open transaction."""
    command.upgrade(config(connection), revision)
