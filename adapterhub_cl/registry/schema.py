"""The index's tables, in SQLAlchemy Core. JSON and times are text, so that SQLite and PostgreSQL store the same.

Changing anything here needs a new file in `migrations/versions/`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)

metadata = MetaData()

adapters = Table(
    "adapters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("created_at", Text, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("name", Text, ForeignKey("adapters.name"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("manifest_sha256", Text, nullable=False),
    Column("manifest", Text, nullable=False),
    PrimaryKeyConstraint("name", "version"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("version", Integer, nullable=False),
    PrimaryKeyConstraint("name", "alias"),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.version"]),
)

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("version", Integer),
    Column("moved_at", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Index("ix_alias_history_name_alias", "name", "alias"),
)

lineage = Table(
    "lineage",
    metadata,
    Column("child_name", Text, nullable=False),
    Column("child_version", Integer, nullable=False),
    Column("parent", Text, nullable=False),
    Column("relation", Text, nullable=False),
    PrimaryKeyConstraint("child_name", "child_version", "parent", "relation"),
    ForeignKeyConstraint(["child_name", "child_version"], ["versions.name", "versions.version"]),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("task", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("value", Float, nullable=False),
    Column("n", Integer, nullable=False),
    Column("data", Text, nullable=False),
    Column("details", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.version"]),
    Index("ix_evaluations_name_version", "name", "version"),
    Index("ix_evaluations_task", "task"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("spec", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
)

serving = Table(
    "serving",
    metadata,
    Column("task", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("moved_at", Text, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.version"]),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("ref", Text, nullable=False),
    Column("detail", Text, nullable=False),
)

# The base has a row here as version 0 of the name `base`, so there is no foreign key.
requests = Table(
    "requests",
    metadata,
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("task", Text, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("routed", BigInteger, nullable=False),
    Column("fallbacks", BigInteger, nullable=False),
    Column("confidence_sum", Float, nullable=False),
    Column("last_at", Text, nullable=False),
    PrimaryKeyConstraint("name", "version", "task"),
)
