from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from registry_support import BASE, Publish, at_revision, rows_of

from adapterhub_cl.errors import HubError, IntegrityError, StorageError, UnknownNameError
from adapterhub_cl.registry import Registry, migrations, schema, writes
from adapterhub_cl.registry.index import HEAD, KNOWN_REVISIONS, Index
from adapterhub_cl.types import Task


@pytest.fixture(autouse=True)
def _alembic_makes_each_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the tests make it by the statements that Alembic ran once."""
    monkeypatch.setattr(migrations, "upgrade", unwrap(migrations.upgrade))


def blank(tmp_path: Path) -> Index:
    return Index(tmp_path, "sqlite:///index.db")


def test_migrating_a_blank_index_gives_the_declared_schema(tmp_path: Path) -> None:
    index = blank(tmp_path)
    assert index.revision() is None
    index.migrate()
    index.migrate()
    assert index.revision() == HEAD
    with index.engine().connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_the_known_revisions_are_those_on_disk() -> None:
    script = ScriptDirectory.from_config(migrations.config())
    assert tuple(reversed([revision.revision for revision in script.walk_revisions()])) == KNOWN_REVISIONS
    assert script.get_current_head() == HEAD


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    index = blank(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(op, "create_index", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
        with pytest.raises(RuntimeError, match="stopped"):
            index.migrate()
    with closing(sqlite3.connect(tmp_path / "index.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    index.migrate()
    assert index.revision() == HEAD


def test_an_upgrade_that_fails_leaves_the_schema_before_it(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import op

    publish(score=0.5)
    at_revision(hub, "0001")
    before = rows_of(hub)
    create = op.create_table

    def fail(*given: object, **named: object) -> None:
        create(*given, **named)  # type: ignore[arg-type]
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_table", fail)
        with pytest.raises(RuntimeError, match="stopped"):
            Registry.open(hub.path)
    assert rows_of(hub) == before
    assert before["alembic_version"] == [("0001",)]
    assert "requests" not in before


@pytest.mark.parametrize("revision", KNOWN_REVISIONS[:-1])
def test_a_hub_of_an_older_version_is_upgraded_when_it_is_opened(
    hub: Registry, publish: Publish, revision: str
) -> None:
    publish(score=0.5)
    publish("other", task="other", edges=[("news@v1", "merged_from")])
    hub.set_alias("news@v1", "production")
    fresh = rows_of(hub)
    at_revision(hub, revision)
    assert Registry(hub.path, hub.hub_file).usage() == []
    opened = Registry.open(hub.path)
    assert rows_of(opened) == fresh
    with opened._index.engine().connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_a_hub_that_was_opened_before_its_upgrade_is_upgraded_by_its_first_write(
    hub: Registry, publish: Publish
) -> None:
    publish()
    at_revision(hub, "0001")
    hub.delete("news@v1")
    assert hub._index.revision() == HEAD


def test_a_newer_schema_is_refused(hub: Registry) -> None:
    with closing(sqlite3.connect(hub.path / "index.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(HubError, match="newer version") as caught:
        Registry.open(hub.path)
    assert "pip install --upgrade" in caught.value.hint


def test_listing_imports_neither_sqlalchemy_nor_alembic(hub: Registry, publish: Publish) -> None:
    publish()
    code = (
        "import sys; from adapterhub_cl.registry import Registry; r = Registry.open(sys.argv[1]);"
        "r.get('news').to_json(), r.events(), r.lineage('news'), r.tasks(), r.serving(), r.aliases();"
        "print(len(r.adapters()), sorted({'sqlalchemy', 'alembic', 'torch', 'filelock'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, hub.path], capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n"


def test_reads_are_the_same_through_sqlalchemy(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way taken on PostgreSQL: the same SQL text, bound and run by SQLAlchemy."""
    publish(score=0.5)
    publish(score=0.75)
    publish("other", task="other", edges=[("news@v1", "merged_from"), ("news@v2", "merged_from")])

    def everything() -> list[object]:
        with pytest.raises(UnknownNameError) as unknown:
            hub.get("mews")
        return [
            hub.adapters(),
            hub.adapters(all_versions=True, include_rejected=False),
            hub.get("news@v1"),
            hub.versions("news"),
            hub.events("news", 1),
            hub.lineage("news@v1"),
            hub.evaluations("news@v2", "news"),
            hub.tasks(),
            hub.serving(),
            hub.aliases(),
            hub.alias_history("news", "latest"),
            unknown.value.hint,
        ]

    natively = everything()
    monkeypatch.setattr(hub._index, "reading", hub._index._reading_engine)
    assert everything() == natively


def test_two_processes_may_open_a_blank_hub_at_once(hub: Registry, publish: Publish) -> None:
    publish()
    for path in hub.path.glob("index.db*"):
        path.unlink()
    code = "import sys; from adapterhub_cl.registry import Registry; print(Registry.open(sys.argv[1]).get('news').ref)"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, hub.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [process.communicate() for process in running] == [("news@v1\n", "")] * 2


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_index_is_named_and_can_be_rebuilt(hub: Registry, publish: Publish, content: bytes) -> None:
    publish()
    (hub.path / "index.db").write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        Registry.open(hub.path)
    assert "cl-adapter verify --rebuild-index" in caught.value.hint
    assert Registry.rebuild_at(hub.path) == 1
    assert Registry.open(hub.path).get("news").ref == "news@v1"


@pytest.mark.parametrize("broken", ['{"a": ', "", "[1]", "null", "nonsense"])
@pytest.mark.parametrize(
    ("table", "column", "read"),
    [
        ("versions", "manifest", lambda hub: dict(hub.get("news").manifest)),
        ("events", "detail", lambda hub: hub.events()),
        ("evaluations", "details", lambda hub: hub.evaluations()),
        ("tasks", "spec", lambda hub: hub.tasks()),
        ("tasks", "spec", lambda hub: hub.put_task(Task("other"))),  # writes `aliases.json`
    ],
)
def test_a_row_with_broken_json_is_named_and_can_be_rebuilt(
    hub: Registry, publish: Publish, table: str, column: str, read: Callable[[Registry], Any], broken: str
) -> None:
    publish(score=0.5)
    whole = hub.get("news"), hub.events(), hub.evaluations(), hub.tasks()
    with closing(sqlite3.connect(hub.path / "index.db")) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", [broken])
        connection.commit()
    with pytest.raises(IntegrityError, match="the index is damaged") as caught:
        read(hub)
    assert "cl-adapter verify --rebuild-index" in caught.value.hint
    assert any("--rebuild-index" in problem.fix for problem in hub.verify())
    Registry.rebuild_at(hub.path)
    events = [replace(event, detail={}) if table == "events" else event for event in whole[1]]
    assert (hub.get("news"), hub.events(), hub.evaluations(), hub.tasks()) == (whole[0], events, *whole[2:])
    assert hub.verify() == []


def test_a_task_without_a_name_is_named(hub: Registry, publish: Publish) -> None:
    publish()
    with closing(sqlite3.connect(hub.path / "index.db")) as connection:
        connection.execute("UPDATE tasks SET spec = '{}'")
        connection.commit()
    with pytest.raises(IntegrityError, match="the task news cannot be read"):
        hub.tasks()


@pytest.mark.parametrize("content", [b"", b"x"])
def test_an_index_that_was_cut_to_nothing_is_made_again(hub: Registry, publish: Publish, content: bytes) -> None:
    publish()
    (hub.path / "index.db").write_bytes(content)
    assert Registry.open(hub.path).get("news").ref == "news@v1"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("database or disk is full", StorageError),
        ("attempt to write a readonly database", StorageError),
        ("database is locked", StorageError),
        ("database disk image is malformed", IntegrityError),
    ],
)
def test_errors_of_the_database_become_ours(
    hub: Registry, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[Exception]
) -> None:

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError(said)

    monkeypatch.setattr(writes, "add_event", fail)
    with pytest.raises(kind):
        hub.add_event("note")
    assert hub.events() == []


@pytest.mark.parametrize("revision", KNOWN_REVISIONS)
def test_a_hub_that_cannot_be_written_can_still_be_listed(
    hub: Registry, publish: Publish, tmp_path: Path, revision: str
) -> None:
    publish()
    at_revision(hub, revision)
    (hub.path / ".lock").unlink(missing_ok=True)
    code = (
        "import os, sys; from adapterhub_cl.registry import Registry, StorageError;"
        "r = Registry.open(sys.argv[1]); print(r.adapters()[0].ref, r.usage(), r._index.revision())\n"
        "try: r.add_event('note')\nexcept StorageError as error: print(error.message)"
    ).replace("Registry, StorageError", "Registry; from adapterhub_cl.errors import StorageError")
    drop = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    hub.path.chmod(0o555)
    opened = [folder for folder in [tmp_path, *tmp_path.parents] if folder.stat().st_uid == os.getuid()]
    modes = {folder: folder.stat().st_mode for folder in opened}
    try:
        if os.geteuid() == 0:  # root may write anywhere, so the child becomes nobody once all is imported
            for folder in opened:
                folder.chmod(modes[folder] | 0o011)
            code = (
                "import sqlalchemy.dialects.sqlite, filelock, adapterhub_cl.registry.mirror, encodings.idna\n"
                + drop
                + code
            )
        done = subprocess.run([sys.executable, "-c", code, hub.path], capture_output=True, text=True)
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
        hub.path.chmod(0o755)
    assert done.stderr == ""
    listed, refused = done.stdout.splitlines()
    assert listed == f"news@v1 [] {revision}"
    assert "no permission to write" in refused


def test_rows_in_an_unmerged_log_are_not_silently_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.registry import index as module

    registry = Registry.create(tmp_path / "hub", BASE)
    (registry.path / "index.db-wal").write_bytes(b"frames")
    tried: list[str] = []

    def refuse(uri: str) -> sqlite3.Connection:
        tried.append(uri)
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(module, "_connect", refuse)
    with pytest.raises(StorageError, match="cannot be opened"):
        registry.adapters()
    assert [uri.partition("?")[2] for uri in tried] == ["mode=rw"]


def test_an_index_url_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="index URL cannot be used"):
        Index(tmp_path, "nosuchdatabase://host/name").revision()


def test_a_database_server_that_refuses_is_named_without_its_password(
    hub: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    def fail(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("connection refused\n  is the server running?"))

    monkeypatch.setattr(writes, "add_event", fail)
    monkeypatch.setattr(hub._index, "where", Index(hub.path, "postgresql+psycopg://me:secret@host/hub").where)
    with pytest.raises(StorageError) as caught:
        hub.add_event("note")
    assert caught.value.message == "the index postgresql+psycopg://…@host/hub cannot be used: connection refused"


def test_statements_compile_for_postgresql() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    dialect = postgresql.dialect()
    texts = {table.name: str(CreateTable(table).compile(dialect=dialect)) for table in schema.metadata.sorted_tables}
    assert len(texts) == 10
    assert "id SERIAL NOT NULL" in texts["events"]
    assert "FOREIGN KEY(name, version) REFERENCES versions (name, version)" in texts["aliases"]
