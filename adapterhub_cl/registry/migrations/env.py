"""Run by Alembic: applies the migrations on the connection that the caller opened."""

from __future__ import annotations

from alembic import context

from adapterhub_cl.registry.schema import metadata

# Alembic does not commit on a connection that is already in a transaction, so one run is one transaction.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
