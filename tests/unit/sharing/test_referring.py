"""References to versions in a store, where a version of the hub is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sharing_support import push, train

from adapterhub_cl.errors import AdapterHubError, IntegrityError, UnknownNameError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.sharing.referring import bring


@pytest.fixture
def store(ours: Registry, tmp_path: Path) -> str:
    """A store with `news@v1` and `news@v2`."""
    train(ours)
    train(ours, content=b"better" * 100)
    push(ours, tmp_path / "store")
    return f"file://{tmp_path / 'store'}"


def test_a_reference_to_a_store_is_pulled_once(theirs: Registry, store: str) -> None:
    theirs.bring = bring
    assert theirs.get(f"{store}/news@v1").ref == "news@v1"
    assert [record.ref for record in theirs.adapters(all_versions=True)] == ["news@v1"]
    events = len(theirs.events())
    assert theirs.get(f"{store}/news@v1").ref == "news@v1"
    assert len(theirs.events()) == events
    assert theirs.get(f"{store}/news").ref == "news@v2"  # the newest of the store


def test_it_works_where_a_version_is_changed(theirs: Registry, store: str) -> None:
    theirs.bring = bring
    theirs.set_alias(f"{store}/news@v2", "good")
    assert theirs.get("news@good").ref == "news@v2"
    assert theirs.promote(f"{store}/news@v1").ref == "news@v1"
    assert theirs.serving() == {"news": "news@v1"}
    assert [one.evaluation.task for one in theirs.evaluations(f"{store}/news@v2")] == ["news"]
    assert theirs.lineage(f"{store}/news@v2") == theirs.lineage("news@v2")


def test_a_signer_is_remembered_under_every_spelling_of_a_store(
    ours: Registry, theirs: Registry, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs.bring = bring
    place = tmp_path / "store"
    assert theirs.get(f"{place}/news@v1").ref == "news@v1"  # a folder's path will do
    shutil.rmtree(place)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
    monkeypatch.setenv("HOME", str(tmp_path / "stranger"))
    push(ours, place)
    (tmp_path / "link").symlink_to(place)
    for other in (f"{tmp_path}/x/../store", f"FILE://{place}", f"{tmp_path}/./store", f"{tmp_path}/link"):
        with pytest.raises(IntegrityError, match="was signed by"):
            theirs.get(f"{other}/news@v2")
    assert [record.ref for record in theirs.adapters(all_versions=True)] == ["news@v1"]


def test_what_the_store_does_not_have(theirs: Registry, store: str) -> None:
    theirs.bring = bring
    for ref, error in (
        (f"{store}/news@v9", UnknownNameError),
        (f"{store}/other", UnknownNameError),
        (f"{store}/news@production", UsageError),
        (f"{store}/../news@v1/..", AdapterHubError),
        ("file:///news@v1/", UsageError),
        ("hf://", UsageError),
        ("nosuch://host/news@v1", UsageError),
    ):
        with pytest.raises(error):
            theirs.get(ref)
    assert theirs.adapters(all_versions=True) == []


def test_a_changed_file_is_refused(theirs: Registry, store: str, tmp_path: Path) -> None:
    theirs.bring = bring
    for blob in (path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()):
        raw = blob.read_bytes()
        blob.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        theirs.get(f"{store}/news@v2")
    assert theirs.adapters(all_versions=True) == []


def test_nothing_is_pulled_where_that_is_not_wanted(theirs: Registry, store: str) -> None:
    with pytest.raises(UsageError, match="no version of this hub"):
        theirs.get(f"{store}/news@v1")
    assert theirs.adapters(all_versions=True) == []
