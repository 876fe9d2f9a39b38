"""The watch: commits of whoever, a rebuilt index, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from registry_support import Publish

from adapterhub_cl.errors import IntegrityError, StorageError
from adapterhub_cl.registry import Registry, watching
from adapterhub_cl.registry.watching import Watch


@pytest.fixture
def watch(hub: Registry) -> Iterator[Watch]:
    opened = Watch(hub)
    assert opened.changed()  # the first look
    assert not opened.changed()
    yield opened
    opened.close()


def test_commits_of_this_object_and_of_another_are_seen_once(hub: Registry, watch: Watch, publish: Publish) -> None:
    publish()
    assert watch.changed()
    assert not watch.changed()
    other = Registry.open(hub.path)
    publish()
    other.set_alias("news@v1", "production")
    assert watch.changed()
    assert not watch.changed()
    other.delete("news@v2")
    assert watch.changed()
    assert not watch.changed()


def test_a_commit_of_another_process_is_seen(hub: Registry, watch: Watch, publish: Publish) -> None:
    publish()
    assert watch.changed()
    code = "import sys; from adapterhub_cl.registry import Registry as R; R.open(sys.argv[1]).add_event('x')"
    subprocess.run([sys.executable, "-c", code, str(hub.path)], check=True)
    assert watch.changed()
    assert not watch.changed()


def test_looking_and_what_fails_change_nothing(hub: Registry, watch: Watch, publish: Publish) -> None:
    publish()
    assert watch.changed()
    hub.adapters(all_versions=True)
    hub.serving()
    hub.get("news")
    hub.verify()
    Registry.open(hub.path).tasks()
    with pytest.raises(Exception, match="v9"):
        hub.set_alias("news@v9", "production")
    with suppress(RuntimeError), hub._index.writing() as connection:
        connection.exec_driver_sql("DELETE FROM aliases")
        raise RuntimeError
    assert not watch.changed()


def test_a_rebuilt_index_is_seen_and_so_is_what_comes_after(hub: Registry, watch: Watch, publish: Publish) -> None:
    publish()
    assert watch.changed()
    for _ in range(3):
        assert Registry.rebuild_at(hub.path) == 1
        assert watch.changed()
        assert not watch.changed()
        hub.set_alias("news@v1", "production")
        assert watch.changed()
        assert not watch.changed()


def test_two_watches_do_not_disturb_each_other(hub: Registry, watch: Watch, publish: Publish) -> None:
    second = Watch(hub)
    assert second.changed()
    publish()
    assert watch.changed()
    assert second.changed()
    assert not watch.changed()
    assert not second.changed()
    second.close()
    second.close()
    publish()
    assert second.changed()  # closed: it opens again, and looks as if for the first time
    second.close()


def test_an_index_that_cannot_be_read(hub: Registry, watch: Watch, publish: Publish) -> None:
    file = hub.path / "index.db"
    away = file.rename(hub.path / "away.db")
    with pytest.raises(StorageError, match="cannot be opened"):
        watch.changed()
    away.rename(file)
    assert watch.changed()
    publish()
    assert watch.changed()
    for suffix in ("-wal", "-shm"):
        file.with_name(f"index.db{suffix}").unlink(missing_ok=True)
    junk = hub.path / "junk"
    junk.write_bytes(b"no database at all, " * 100)
    junk.replace(file)
    with pytest.raises(IntegrityError, match="damaged"):
        watch.changed()


def test_another_database_is_taken_to_have_changed_once_a_second(
    hub: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(watching.time, "monotonic", lambda: now)
    hub._index.file = None
    watch = Watch(hub)
    assert watch.changed()
    assert not watch.changed()
    now += watching.EVERY_S - 0.01
    assert not watch.changed()
    now += 0.02
    assert watch.changed()
    assert not watch.changed()
