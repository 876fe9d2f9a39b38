"""An index on a PostgreSQL server: the answers of SQLite, locks between machines, notifications, bad input."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from postgres_support import PostgresServer, postgres
from registry_support import BASE, publish_into

from adapterhub_cl.errors import AdapterHubError, HubError, StorageError, UsageError
from adapterhub_cl.registry import Counted, Registry
from adapterhub_cl.registry.postgres import _bound, check_url
from adapterhub_cl.registry.watching import Watch
from adapterhub_cl.types import Evaluation

__all__ = ["postgres"]
slow = pytest.mark.slow


@pytest.fixture
def hub(postgres: PostgresServer, tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "hub", BASE, index_url=postgres.new_database())


def busy_day(registry: Registry) -> None:
    """Every kind of write."""
    publish_into(registry, score=0.5)
    publish_into(registry, score=0.75)
    publish_into(registry, "other", task="other", edges=[("news@v1", "merged_from"), ("news@v2", "merged_from")])
    publish_into(registry, "a-b", task="a-b", status="rejected")
    publish_into(registry, "a.b", task="a.b")
    publish_into(registry, "ab", task="ab")
    registry.set_alias("news@v1", "production")
    registry.set_alias("news@v2", "production")
    registry.rollback("news@production")
    registry.add_evaluations("news@v2", [Evaluation("other", "accuracy", 0.25, 4, "ünï%s :x", {"a": 1})])
    registry.count_requests([Counted("news@v1", "news", 3, 1, 0, 0.5, "2026-01-01T00:00:00")])
    registry.count_requests([Counted("news@v1", "news", 2, 1, 0, 0.5, "2026-01-02T00:00:00")])
    registry.set_status("ab@v1", "rejected")
    registry.delete("a.b@v1")
    registry.add_event("note", "news@v1", {"said": "100 % of :name"})


def everything(registry: Registry) -> dict[str, Any]:
    """What a hub says about itself, without times and places."""
    with pytest.raises(AdapterHubError) as unknown:
        registry.get("mews")
    return {
        "adapters": [(r.ref, r.status, r.aliases, r.task, r.bytes) for r in registry.adapters(all_versions=True)],
        "current": [r.ref for r in registry.current()],
        "latest": [r.ref for r in registry.adapters(include_rejected=False)],
        "versions": [r.ref for r in registry.versions("news")],
        "got": [registry.get(ref).ref for ref in ("news", "news@production", "news@v2", "production")],
        "events": [
            (e.verb, e.ref, {k: v for k, v in e.detail.items() if k != "created_at"}) for e in registry.events()
        ],
        "of news": [e.verb for e in registry.events("news", 2)],
        "lineage": registry.lineage("news@v1"),
        "scores": [(s.ref, s.evaluation) for s in registry.evaluations()],
        "one task": [(s.ref, s.evaluation.value) for s in registry.evaluations("news@v2", "other")],
        "tasks": registry.tasks(),
        "serving": registry.serving(),
        "aliases": registry.aliases(),
        "moves": [(m.version, m.reason) for m in registry.alias_history("news", "production")],
        "usage": [u.to_json() for u in registry.usage()],
        "hint": unknown.value.hint,
    }


@slow
def test_a_server_answers_as_a_file_does(hub: Registry, tmp_path: Path) -> None:
    beside = Registry.create(tmp_path / "beside", BASE)
    for registry in (hub, beside):
        busy_day(registry)
    assert everything(hub) == everything(beside)
    assert hub.verify() == []
    again = Registry.open(hub.path)
    assert again.rebuild() == 6
    assert everything(again) == everything(beside)
    assert again.verify() == []


@slow
def test_listing_imports_no_sqlalchemy(hub: Registry) -> None:
    publish_into(hub)
    code = (
        "import sys; from adapterhub_cl.registry import Registry; r = Registry.open(sys.argv[1]);"
        "print(len(r.adapters()), sorted({'sqlalchemy', 'alembic', 'torch', 'filelock'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, hub.path], capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n"


@slow
def test_a_change_is_heard_of_at_once(hub: Registry, postgres: PostgresServer) -> None:
    publish_into(hub)
    publish_into(hub)
    watch = Watch(hub)
    try:
        assert [watch.changed(), watch.changed()] == [True, False]
        hub.set_alias("news@v1", "production")
        assert _soon(watch.changed)
        assert not watch.changed()
        postgres.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%current_schema()%' "
            "AND pid <> pg_backend_pid()"
        )
        assert _soon(watch.changed)  # what was announced in between is not known
        hub.set_alias("news@v2", "production")
        assert _soon(watch.changed)
    finally:
        watch.close()


def _soon(happened: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not (found := happened()) and time.monotonic() < until:
        time.sleep(0.01)
    return found


def _hold(path: Path, url: str, held: Any, release: Any) -> None:
    """Hold the lock of the server from another folder, as another machine does."""
    from adapterhub_cl.registry.postgres import open_index

    with open_index(path, url).lock():
        held.set()
        release.wait(30)


@slow
def test_one_machine_waits_for_another(hub: Registry, tmp_path: Path) -> None:
    publish_into(hub)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    spawn = multiprocessing.get_context("spawn")
    held, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(elsewhere, hub.hub_file.index_url, held, release))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(StorageError, match="another process keeps the index"), hub._index.lock(timeout=0.2):
            pass
        with pytest.raises(StorageError, match="another machine is writing"), hub._index.lock(timeout=0):
            pass
        assert hub.get("news").ref == "news@v1"
    finally:
        release.set()
        other.join()
    assert publish_into(hub).ref == "news@v2"


@slow
def test_a_lost_connection_loses_the_lock_and_saves_nothing(hub: Registry, postgres: PostgresServer) -> None:
    publish_into(hub)
    ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'hub%'"
    with hub._index.lock():
        postgres.sql(ends)
        with pytest.raises(StorageError, match=r"cannot be used|was lost"):
            publish_into(hub)
        with pytest.raises(StorageError, match="was lost"):
            hub.add_event("note")
    assert [r.ref for r in hub.adapters(all_versions=True)] == ["news@v1"]
    assert hub.verify() == []
    assert publish_into(hub).ref == "news@v2"


@slow
def test_a_commit_whose_answer_was_lost_is_looked_up(
    hub: Registry, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.engine import RootTransaction

    real = RootTransaction.commit
    lost: list[bool] = []

    def commit(self: RootTransaction) -> None:
        if numbered and lost:  # taking the lock commits too
            numbered.clear()
            if lost.pop():
                real(self)
            else:
                self.rollback()
            raise ConnectionError("the network is gone")
        real(self)

    numbered: list[int] = []
    stamp = type(hub._index)._stamp

    def stamped(self: Any, connection: Any) -> int:
        numbered.append(stamp(self, connection))
        return numbered[-1]

    monkeypatch.setattr(type(hub._index), "_stamp", stamped)
    monkeypatch.setattr(RootTransaction, "commit", commit)
    lost.append(True)
    hub.add_event("saved")
    lost.append(False)
    with pytest.raises(ConnectionError):
        hub.add_event("not saved")
    assert [event.verb for event in hub.events()] == ["saved"]


@slow
def test_wrong_places_are_refused_in_one_line(hub: Registry, postgres: PostgresServer, tmp_path: Path) -> None:
    from dataclasses import replace

    publish_into(hub)
    url = hub.hub_file.index_url
    database = url.rpartition("/")[2]
    postgres.sql("CREATE ROLE lesser LOGIN")
    lesser = postgres.new_database().replace(postgres.user, "lesser")
    for given, error, said in [
        (url, HubError, "belongs to another hub, whose versions are in"),
        (postgres.url("missing"), StorageError, 'database "missing" does not exist'),
        (postgres.url(database, "nobody"), StorageError, 'role "nobody" does not exist'),
        (lesser, StorageError, "no permission in the index"),
        ("postgresql://owner@127.0.0.1:9/hub", StorageError, "Connection refused"),
        (url.replace("owner@", "owner:secret@"), UsageError, "contains a password"),
        ("mysql://host/name", UsageError, "not the address of a PostgreSQL server"),
    ]:
        with pytest.raises(error, match=said) as caught:
            Registry.create(tmp_path / "new", BASE, index_url=given)
        assert "\n" not in caught.value.message
        assert caught.value.hint
        assert "secret" not in caught.value.message
        # What a role may not do shows only when it is tried.
        assert given == lesser or not (tmp_path / "new").exists()
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    with pytest.raises(HubError, match="a hub of another base"):
        Registry.create(tmp_path / "other", replace(BASE, fingerprint="e" * 64), index_url=url)
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "new" / "hub.toml").exists()
    toml = (hub.path / "hub.toml").read_text()
    (hub.path / "hub.toml").write_text(toml.replace(url, postgres.new_database()))
    with pytest.raises(HubError, match="has no tables"):
        Registry.open(hub.path)
    assert Registry.rebuild_at(hub.path) == 1  # the database was lost, and a blank one is in its place
    assert Registry.open(hub.path).get("news@latest").ref == "news@v1"
    (hub.path / "hub.toml").write_text(toml)
    postgres.sql("UPDATE alembic_version SET version_num = '9999'", database)
    with pytest.raises(HubError, match="newer version"):
        Registry.open(hub.path)
    postgres.sql("UPDATE alembic_version SET version_num = '0002'", database)
    postgres.sql("DROP TABLE serving", database)
    with pytest.raises(AdapterHubError, match="is damaged"):
        Registry.open(hub.path).serving()


@slow
def test_a_server_that_is_down_is_told_and_nothing_is_lost(hub: Registry, postgres: PostgresServer) -> None:
    publish_into(hub)
    postgres.stop()
    try:
        with pytest.raises(StorageError, match="cannot be used"):
            Registry.open(hub.path)
        with pytest.raises(StorageError, match="nothing was changed"):
            publish_into(hub)
    finally:
        postgres.start()
    assert publish_into(hub).ref == "news@v2"
    assert hub.verify() == []


@slow
def test_what_was_read_last_serves_while_the_server_is_down(
    hub: Registry, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl.deciding import view as views

    monkeypatch.setattr(views, "RETRY_S", 0.0)
    publish_into(hub)
    publish_into(hub)
    view = views.View(hub)
    try:
        assert view.refresh()
        postgres.stop()
        try:
            assert not view.refresh()
            assert view.serving == {"news": "news@v2"}
        finally:
            postgres.start()
        hub.set_alias("news@v1", "production")
        assert _soon(view.refresh)
        assert view.serving == {"news": "news@v1"}
    finally:
        view.close()


def test_parameters_are_bound_in_the_drivers_style() -> None:
    assert _bound("SELECT a::text FROM t WHERE n = :name AND p LIKE 'x%'") == (
        b"SELECT a::text FROM t WHERE n = %(name)s AND p LIKE 'x%%'"
    )
    assert _bound("SELECT 'x%'") == b"SELECT 'x%'"


def test_the_urls_scheme_is_stored_without_a_driver() -> None:
    pytest.importorskip("psycopg", reason="needs psycopg")
    assert check_url("postgres://host/hub") == check_url("postgresql+psycopg://host/hub") == "postgresql://host/hub"
