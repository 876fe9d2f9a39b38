"""Versions in a shared store: publishing, copies, removals, health, and a kill between any two steps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crashes import in_child
from registry_support import BASE, publish_into

from adapterhub_cl.errors import HubError, IntegrityError, StorageError, UsageError
from adapterhub_cl.registry import Registry, drafts
from adapterhub_cl.registry.hubfile import check_store_url
from adapterhub_cl.registry.remote_store import RemoteStore
from adapterhub_cl.registry.samples import Replacement
from adapterhub_cl.types import Task


@pytest.fixture
def shared(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "hub", BASE, store_url=f"local://{tmp_path}/store")


def files_in(hub: Registry, folder: str = "") -> list[str]:
    root = hub.path.parent / "store"
    return sorted(path.relative_to(root).as_posix() for path in (root / folder).rglob("*") if path.is_file())


def publish_samples(hub: Registry, text: str, name: str = "news") -> None:
    with hub.new_draft(name) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
        (draft.path / "replay.jsonl").write_text(text)
        hub.publish(draft, {"kind": "trained", "rank": 8}, task=Task(name, "choice", labels=("a", "b")))


def test_a_copy_is_fetched_when_the_path_is_first_used(shared: Registry) -> None:
    published = publish_into(shared)
    assert published.place.is_dir()
    shutil.rmtree(published.place)
    record = Registry.open(shared.path).get("news")
    assert record.to_json()["ref"] == "news@v1"
    assert "news@v1" in repr(record)
    assert record == shared.get("news")
    assert not record.place.exists()
    assert (record.path / "adapter_model.safetensors").read_bytes() == b"weights" * 100
    assert (record.path / "extra" / "training.json").stat().st_mode & 0o777 == 0o444
    shared.check_files(record)
    assert shared.verify() == []


def test_a_file_that_was_changed_in_the_store_is_refused_on_arrival(shared: Registry) -> None:
    record = publish_into(shared)
    shutil.rmtree(record.place)
    (large,) = [name for name in files_in(shared, "blobs") if (shared.path.parent / "store" / name).stat().st_size > 9]
    path = shared.path.parent / "store" / large
    path.write_bytes(b"WEIGHTS" * 100)
    with pytest.raises(IntegrityError, match=r"adapter_model.safetensors of news@v1 was changed"):
        _ = shared.get("news").path
    assert list(record.place.parent.iterdir()) == []
    path.unlink()
    with pytest.raises(IntegrityError, match="is missing in"):
        shared.check_files(shared.get("news"))
    assert [problem.problem for problem in shared.verify()] == [
        "adapter_model.safetensors is missing or incomplete in the store"
    ]


@pytest.mark.parametrize("point", ["files uploaded", "manifest created", "rows inserted", "committed"])
def test_a_kill_leaves_the_old_state_or_the_whole_version(shared: Registry, point: str) -> None:
    publish_into(shared)

    def killed() -> None:
        drafts.fault = lambda here: os._exit(9) if here == point else None  # type: ignore[assignment]
        publish_into(Registry.open(shared.path), content=b"second")

    assert in_child(killed) == 9
    again = Registry.open(shared.path)
    assert {problem.fix for problem in again.verify()} <= {"cl-adapter verify --repair"}
    assert [r.ref for r in again.adapters(all_versions=True)] == ["news@v1", "news@v2"][: 1 + (point == "committed")]
    again.repair()
    assert again.verify() == []
    whole = point != "files uploaded"
    assert again.get("news").ref == ("news@v2" if whole else "news@v1")
    if whole:
        assert (again.get("news").path / "adapter_model.safetensors").read_bytes() == b"second"
    assert publish_into(again, content=b"third").ref == ("news@v3" if whole else "news@v2")
    again.collect(again.garbage())
    assert len(files_in(again, "blobs")) == (4 if whole else 3)  # the weights of each version, and one training.json


def test_a_number_that_waits_in_the_store_is_not_given_away(shared: Registry) -> None:
    publish_into(shared)
    place = shared.path.parent / "store" / "manifests" / "news"
    (place / "v7.json").write_text("not a manifest")
    assert publish_into(shared).ref == "news@v8"
    (problem,) = shared.verify()
    assert "not in the index, and incomplete" in problem.problem
    (place / "v9.json").write_text("another writer's")
    assert shared.shared is not None
    assert not shared.shared.create("news", 9, "mine")
    assert (place / "v9.json").read_text() == "another writer's"


@pytest.mark.parametrize("killed", [False, True])
def test_removed_samples_leave_the_store_and_every_copy(shared: Registry, killed: bool) -> None:
    publish_samples(shared, '{"text": "private"}\n')
    publish_samples(shared, '{"text": "kept"}\n')
    private = b'{"text": "private"}\n'

    def remove() -> None:
        if killed:
            drafts.fault = lambda here: os._exit(9) if here == "row updated" else None  # type: ignore[assignment]
        Registry.open(shared.path).replace_all_samples([Replacement("news@v1", "")], verb="replay-drop")

    assert in_child(remove) == (9 if killed else 0)
    again = Registry.open(shared.path)
    problems = {problem.problem for problem in again.verify()}
    assert problems == (
        {"differs from the index: a removal of samples was interrupted", "a copy that the index describes otherwise"}
        if killed
        else set()
    )
    assert (again.get("news@v1").path / "replay.jsonl").read_text() == ""
    again.repair()
    assert again.verify() == []
    everything = [path.read_bytes() for path in again.path.parent.rglob("*") if path.is_file()]
    assert not any(private in data for data in everything)
    assert (again.get("news@v2").path / "replay.jsonl").read_text() == '{"text": "kept"}\n'


def test_a_record_from_before_a_removal_leads_to_what_is_there_now(shared: Registry) -> None:
    publish_samples(shared, '{"text": "private"}\n')
    before = shared.get("news@v1")
    shared.replace_samples("news@v1", "")
    assert (before.path / "replay.jsonl").read_text() == ""
    shared.check_files(before)
    shutil.rmtree(before.place)
    shared.check_files(before)
    assert shared.verify() == []


def test_gc_keeps_what_another_version_has(shared: Registry) -> None:
    publish_into(shared)
    publish_into(shared)
    publish_into(shared, "other", task="other", content=b"other")
    assert len(files_in(shared, "blobs")) == 3
    shared.delete("news@v1")
    shared.delete("other@v1")
    found = shared.garbage()
    assert {item.reason for item in found} == {"a deleted version"}
    shared.collect(found)
    shared.collect(shared.garbage())
    assert files_in(shared, "manifests") == ["manifests/news/v2.json"]
    assert len(files_in(shared, "blobs")) == 2
    shutil.rmtree(shared.path / "adapters")
    shared.check_files(shared.get("news@v2"))
    assert shared.garbage() == []
    assert shared.verify() == []


def test_what_was_erased_leaves_the_store_and_copies_of_other_machines(shared: Registry) -> None:
    publish_into(shared, content=b"private")
    publish_into(shared, "other", task="other")
    copy = shared.path.parent / "kept"
    shutil.copytree(shared.path / "adapters", copy)
    shared.erase("news", {"news@v1": None}, {}, {"tombstone": "news.json"})
    shared.remove_files(["news@v1"])
    assert files_in(shared, "manifests") == ["manifests/other/v1.json"]
    assert not any(
        b"private" in path.read_bytes() for path in (shared.path.parent / "store").rglob("*") if path.is_file()
    )
    shutil.copytree(copy, shared.path / "adapters", dirs_exist_ok=True)  # as if it had been another machine's
    Registry.open(shared.path)
    assert [path.name for path in (shared.path / "adapters").glob("*/v*")] == ["v1"]
    assert not (shared.path / "adapters" / "news" / "v1").exists()


def test_a_damaged_copy_is_fetched_again_after_a_repair(shared: Registry) -> None:
    record = publish_into(shared)
    weights = record.place / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="700 were recorded"):
        shared.check_files(shared.get("news"))
    assert [problem.fix for problem in shared.verify()] == ["cl-adapter verify --repair"]
    assert any("fetched again" in line for line in shared.repair())
    shared.check_files(shared.get("news"))


def test_the_index_is_rebuilt_from_the_store(shared: Registry) -> None:
    publish_into(shared)
    publish_into(shared, content=b"second")
    shared.set_alias("news@v1", "production")
    shutil.rmtree(shared.path / "adapters")
    for file in shared.path.glob("index.db*"):
        file.unlink()
    again = Registry.open(shared.path)
    assert again.aliases() == {"news": {"latest": 2, "production": 1}}
    assert again.verify() == []


def test_a_store_of_another_hub_is_refused(shared: Registry, tmp_path: Path) -> None:
    url = shared.hub_file.store_url
    publish_into(shared)
    with pytest.raises(HubError, match="belongs to another hub"):
        Registry.create(tmp_path / "second", BASE, store_url=url)
    assert not (tmp_path / "second" / "hub.toml").exists()
    for wrong in ("/srv/adapters", "memory://x", "s3://", "s3://me:secret@host/x"):
        with pytest.raises(UsageError) as caught:
            check_store_url(wrong)
        assert caught.value.hint
    assert check_store_url("s3://bucket/prefix/") == "s3://bucket/prefix"


def test_listing_opens_no_store(shared: Registry) -> None:
    publish_into(shared)
    code = (
        "import sys; from adapterhub_cl.registry import Registry; r = Registry.open(sys.argv[1]);"
        "print([x.to_json()['ref'] for x in r.adapters()], sorted({'sqlalchemy', 'fsspec', 's3fs'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, shared.path], capture_output=True, text=True, check=True)
    assert done.stdout == "['news@v1'] []\n"


def test_only_one_writer_puts_a_new_file(tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec")
    for target in (str(tmp_path / "folder"), "memory://test_shared_store"):
        store = RemoteStore(target)
        assert store.put_new("a/b.json", b"mine")
        assert store.put_new("a/b.json", b"mine")  # sent twice: the second finds what the first has put
        assert not store.put_new("a/b.json", b"yours")
        assert store.read("a/b.json") == b"mine"
        assert store.sizes("a") == {"a/b.json": 4}
        store.remove("a/b.json")
        store.remove("a/b.json")
        assert store.sizes("a") == {}


def test_a_store_that_is_not_mounted_is_not_made_again(shared: Registry) -> None:
    store = shared.path.parent / "store"
    publish_into(shared)
    away = store.rename(store.with_name("away"))
    with pytest.raises(StorageError, match="is not there: is it mounted") as refused:
        publish_into(shared, content=b"second")
    assert "mount it" in refused.value.hint
    assert not store.exists()
    store.mkdir()  # the mount point
    with pytest.raises(StorageError, match="is it mounted"):
        publish_into(shared, content=b"second")
    for asks in (shared.repair, shared.check_store):
        with pytest.raises(StorageError, match="is it mounted"):
            asks()
    assert list(store.iterdir()) == []
    (problem,) = shared.verify()
    assert problem.path.endswith("store/hub.json")
    store.rmdir()
    away.rename(store)
    assert publish_into(shared, content=b"second").ref == "news@v2"
    assert shared.verify() == []


def test_a_lost_or_strange_identity_is_found(shared: Registry) -> None:
    publish_into(shared)
    file = shared.path.parent / "store" / "hub.json"
    whole = file.read_bytes()
    for content in (None, b"\x00 nothing", b"[1]"):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        (problem,) = shared.verify()
        assert "verify --repair" in problem.fix
        with pytest.raises(StorageError):
            publish_into(shared, content=b"second")
        assert shared.repair() == [f"wrote {file}"]
        assert file.read_bytes() == whole
    file.write_bytes(whole.replace(b"20", b"19", 1))
    (problem,) = shared.verify()
    assert "belongs to another hub" in problem.problem
    for writes in (shared.repair, lambda: publish_into(shared, content=b"second")):
        with pytest.raises(HubError, match="belongs to another hub"):
            writes()


@pytest.mark.parametrize("damage", ["changed", "missing", "cut"])
def test_a_damaged_file_in_the_store_comes_back_from_a_copy(shared: Registry, damage: str) -> None:
    record = publish_into(shared)
    (large,) = [name for name in files_in(shared, "blobs") if (shared.path.parent / "store" / name).stat().st_size > 9]
    path = shared.path.parent / "store" / large

    def harm() -> None:
        path.unlink()
        if damage != "missing":
            path.write_bytes(b"WEIGHTS" * (100 if damage == "changed" else 1))

    harm()
    (problem,) = shared.verify()
    assert problem.fix == "cl-adapter verify --repair"
    assert "changed" in problem.problem if damage == "changed" else "missing or incomplete" in problem.problem
    if damage == "changed":
        assert shared.repair(hashes=False) == []
    assert shared.repair() == ["put adapter_model.safetensors of news@v1 back into the store"]
    assert path.read_bytes() == b"weights" * 100
    assert shared.verify() == []
    harm()
    shutil.rmtree(record.place)
    (problem,) = shared.verify()
    assert "on a machine that has a copy" in problem.fix
    shared.repair()
    assert path.exists() == (damage != "missing")


def test_a_store_inside_a_hub_is_refused(shared: Registry, tmp_path: Path) -> None:
    for place in ("second/store", "second", "hub", "hub/adapters/store"):
        with pytest.raises(UsageError, match="is inside the hub") as refused:
            Registry.create(tmp_path / "second", BASE, store_url=f"local://{tmp_path}/{place}")
        assert "--store" in refused.value.hint
    assert not (tmp_path / "second").exists()
    assert shared.verify() == []
