"""An index that is a sound database and holds what was never written: it is called damaged, and can be made anew."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress

import pytest
from registry_support import Publish

from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.registry import Registry

REBUILD = "cl-adapter verify --rebuild-index"
ODD = ["'../../x'", "x'ff00'", "-99999999999", "''", "'1 5'"]
COLUMNS = {
    "versions": ("name", "version", "kind", "status", "rank", "bytes", "manifest"),
    "aliases": ("name", "alias", "version"),
    "serving": ("task", "name", "version"),
    "alias_history": ("name", "alias", "version"),
    "lineage": ("child_name", "child_version"),
    "events": ("detail",),
}


@pytest.mark.parametrize("table", COLUMNS)
def test_what_was_never_written_is_called_damage(hub: Registry, publish: Publish, table: str) -> None:
    publish()
    publish(edges=[("news@v1", "updated_from")])
    before = (hub.aliases(), hub.serving(), [record.ref for record in hub.adapters(all_versions=True)])
    for column in COLUMNS[table]:
        for value in ODD:
            with closing(sqlite3.connect(hub.path / "index.db")) as connection:
                connection.execute("PRAGMA foreign_keys = OFF")
                connection.execute(
                    f"UPDATE {table} SET {column} = {value} WHERE rowid = (SELECT max(rowid) FROM {table})"
                )
                connection.commit()
            opened = Registry.open(hub.path)
            assert REBUILD in [problem.fix.rpartition(": ")[2] for problem in opened.verify()], (column, value)
            for read in (
                opened.adapters,
                opened.current,
                opened.aliases,
                opened.serving,
                opened.lineage,
                opened.repair,
            ):
                with suppress(IntegrityError):  # an internal error would not be one
                    read()
            assert Registry.rebuild_at(hub.path) == 2
            assert Registry.open(hub.path).verify() == [], (column, value)
    assert (hub.aliases(), hub.serving(), [r.ref for r in hub.adapters(all_versions=True)]) == before
