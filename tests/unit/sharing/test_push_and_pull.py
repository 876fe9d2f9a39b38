"""Versions go through a store and arrive as they were; what is wrong in the store never becomes a version."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import stat
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_support import BASE
from sharing_support import SECRET, Notes, lora, make_hub, pull, push, train

from adapterhub_cl.errors import (
    AdapterError,
    AdapterHubError,
    IntegrityError,
    StorageError,
    UnknownNameError,
    UsageError,
)
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.drafts import Draft
from adapterhub_cl.registry.remote_store import RemoteStore
from adapterhub_cl.sharing import fetching
from adapterhub_cl.sharing.signing import signing_key
from adapterhub_cl.types import AdapterRecord, Evaluation


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/adapters"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def only_blob(folder: Path, size: int) -> Path:
    (found,) = [p for p in (folder / "blobs").rglob("*") if p.is_file() and p.stat().st_size == size]
    return found


def unharmed(hub: Registry) -> None:
    """The hub has no version, nothing half done, and no leftover."""
    assert hub.adapters(all_versions=True) == []
    assert hub.verify() == []
    assert list(hub.path.glob(".tmp-*")) == []


def test_a_version_arrives_with_all_that_is_recorded_of_it(ours: Registry, theirs: Registry, store: str) -> None:
    train(ours)
    record = train(ours, content=b"better" * 100, edges=[("news@v1", "updated_from")])
    ours.add_evaluations("news@v2", [Evaluation("news", "macro_f1", 0.75, 10)])
    push(ours, store, "news")
    assert [one.ref for one in pull(theirs, store)] == ["news@v1", "news@v2"]
    there = theirs.get("news@v2")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (there.path / name).read_bytes() == (record.path / name).read_bytes()
    assert there.manifest["gate"] == record.manifest["gate"]
    assert there.created_at == record.created_at
    assert theirs.task("news") == ours.task("news")
    assert {(e.evaluation.metric, e.evaluation.value) for e in theirs.evaluations("news@v2")} == {
        ("accuracy", 0.5),
        ("macro_f1", 0.75),
    }
    assert [(e.child, e.parent, e.relation) for e in theirs.lineage()] == [("news@v2", "news@v1", "updated_from")]
    assert theirs.serving() == {"news": "news@v2"}
    assert theirs.verify() == []
    assert [one.moved for one in pull(theirs, store)] == [False, False]
    theirs.rebuild()
    assert theirs.serving() == {"news": "news@v2"}


def test_a_version_arrives_under_its_number_without_those_before_it(
    ours: Registry, theirs: Registry, store: str
) -> None:
    train(ours)
    train(ours, content=b"better", edges=[("news@v1", "updated_from")])
    push(ours, store, "news@v2")
    assert pull(theirs, store, "news@latest")[0].ref == "news@v2"
    url = RemoteStore(store).url
    assert [(e.parent, e.relation) for e in theirs.lineage()] == [(f"{url}/news@v1", "updated_from")]
    push(ours, store, "news@v1")
    pull(theirs, store, "news@v1")
    assert theirs.serving() == {"news": "news@v2"}
    assert theirs.get("news").ref == "news@v2"


def test_one_new_version_moves_its_own_bytes(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    train(ours, content=b"first " * 50_000)
    push(ours, store, "news")
    pull(theirs, store)
    record = train(ours, content=b"second" * 50_000)
    before = sum(map(len, files_of(store).values()))
    (_, sent) = push(ours, store, "news")
    assert sum(map(len, files_of(store).values())) - before == sent.bytes <= 1.05 * record.bytes
    assert sum(one.bytes for one in pull(theirs, store)) <= 1.05 * record.bytes
    assert [one.bytes for one in push(ours, store, "news")] == [0, 0]


def test_samples_move_only_if_they_are_wanted(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    train(ours)
    push(ours, store, "news")
    assert not any(SECRET.encode() in content for content in files_of(store).values())
    pull(theirs, store, with_samples=True)
    assert (theirs.get("news").path / "replay.jsonl").read_text() == ""
    assert theirs.get("news").manifest["replay"]["samples"] == 0
    push(ours, store, "news", with_samples=True)
    assert any(SECRET.encode() in content for content in files_of(store).values())
    third, fourth = make_hub(tmp_path / "third"), make_hub(tmp_path / "fourth")
    pull(third, store)
    assert (third.get("news").path / "replay.jsonl").read_text() == ""
    pull(fourth, store, with_samples=True)
    assert SECRET in (fourth.get("news").path / "replay.jsonl").read_text()
    notes = Notes()
    pull(theirs, store, with_samples=True, reporter=notes)
    assert sum("news@v1 was pulled before without replay samples" in line for line in notes.told) == 1
    pull(fourth, store, with_samples=True, reporter=(quiet := Notes()))
    assert not any("without replay samples" in line for line in quiet.told)


def test_samples_that_were_dropped_leave_the_store_too(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    train(ours)
    push(ours, store, "news", with_samples=True)
    pull(theirs, store)
    assert [one.moved for one in push(theirs, store, "news", with_samples=True)] == [False], "it has none to put there"
    kept = '{"instruction": "", "input": "harmless", "output": "a"}\n'
    ours.replace_samples("news@v1", kept)
    push(ours, store, "news", reporter=(notes := Notes()))
    assert any("keeps other replay samples of news@v1" in line for line in notes.told)
    assert any(SECRET.encode() in content for content in files_of(store).values())
    assert [one.moved for one in push(ours, store, "news", with_samples=True)] == [True]
    assert not any(SECRET.encode() in content for content in files_of(store).values())
    fourth = make_hub(tmp_path / "fourth")
    pull(fourth, store, with_samples=True)
    assert (fourth.get("news").path / "replay.jsonl").read_text() == kept
    assert [one.moved for one in push(ours, store, "news", with_samples=True)] == [False]


def test_nothing_but_versions_leaves_the_hub(ours: Registry, tmp_path: Path) -> None:
    train(ours)
    for name in ("keys.json", "traffic.db", "signers.json", "uploads.bin"):
        (ours.path / name).write_text("TOP SECRET")
    push(ours, tmp_path / "store", "news")
    assert not any(b"TOP SECRET" in content for content in files_of(tmp_path / "store").values())
    key = tmp_path / "config" / "adapterhub-cl" / "signing.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = key.read_text().strip().encode()
    assert not any(secret in content for content in files_of(tmp_path / "store").values())
    key.chmod(0o644)
    with pytest.raises(UsageError, match="others can read the signing key"):
        push(ours, tmp_path / "other", "news")


# -- what is refused ---------------------------------------------------------------------------------------------


def test_a_changed_byte_is_refused(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    train(ours)
    push(ours, store, "news")
    blob = only_blob(store, 700)
    blob.write_bytes(b"W" + blob.read_bytes()[1:])
    with pytest.raises(IntegrityError, match=r"adapter_model.safetensors of news@v1 .* was changed"):
        pull(theirs, store)
    unharmed(theirs)


def test_a_truncated_upload_is_refused_and_mended_by_the_next_push(
    ours: Registry, theirs: Registry, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    train(ours)
    push(ours, store, "news")
    blob = only_blob(store, 700)
    blob.write_bytes(blob.read_bytes()[:300])
    with pytest.raises(IntegrityError, match="has 300 of 700 bytes"):
        pull(theirs, store)
    unharmed(theirs)
    assert [one.bytes for one in push(ours, store, "news")] == [700]
    assert pull(theirs, store)[0].moved


def test_a_changed_document_is_refused(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    train(ours)
    push(ours, store, "news")
    path = store / "versions" / "news" / "v1.json"
    good = path.read_text()
    for bad, said in (
        (good.replace("0.5", "0.9"), "signature of news@v1"),
        (good[:200], "document of news@v1 .* is damaged"),
        ("[]", "is damaged"),
        ("[" * 5000, "is damaged"),
    ):
        path.write_text(bad)
        with pytest.raises(IntegrityError, match=said):
            pull(theirs, store)
        with pytest.raises(IntegrityError, match=said):
            push(ours, store, "news")
        unharmed(theirs)
    path.write_text(good)
    (store / "versions" / "news" / "v7.json").write_text(good)  # a signed document in the place of another
    with pytest.raises(IntegrityError, match=r"news@v7|v7"):
        pull(theirs, store, "news@v7")
    unharmed(theirs)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_signed_number_that_is_not_finite_is_refused(
    ours: Registry, theirs: Registry, tmp_path: Path, number: str
) -> None:
    train(ours, training={"loss": 0.125})
    push(ours, tmp_path / "store", "news")
    path, key = tmp_path / "store" / "versions" / "news" / "v1.json", signing_key()
    outer = json.loads(path.read_text())
    text = outer["signed"].replace("0.125", number)
    signature = key.sign(b"adapterhub-cl shared version\n" + text.encode())
    path.write_text(json.dumps({**outer, "signed": text, "signature": base64.b64encode(signature).decode()}))
    with pytest.raises(IntegrityError, match="describes no version"):
        pull(theirs, tmp_path / "store")
    unharmed(theirs)


class Touch:
    """A pickle that leaves a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("garbage", "adapter_model.safetensors cannot be read"),
        ("pickle", "adapter_model.safetensors cannot be read"),
        ("nan", "NaN"),
        ("no weights", "it has no adapter_model.safetensors"),
        ("config", "adapter_config.json cannot be read"),
        ("other config", "is PREFIX, not LoRA"),
        ("no config", "it has no adapter_config.json"),
    ],
)
def test_signed_files_that_are_no_adapter_are_refused(
    ours: Registry, theirs: Registry, tmp_path: Path, damage: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Registry.publish

    def spoiled(self: Registry, draft: Draft, *given: Any, **options: Any) -> AdapterRecord:
        weights, config = draft.path / "adapter_model.safetensors", draft.path / "adapter_config.json"
        match damage:
            case "garbage":
                weights.write_bytes(b"garbage" * 100)
            case "pickle":
                weights.write_bytes(pickle.dumps(Touch(tmp_path / "loaded")))
            case "nan":
                weights.write_bytes(lora(b"\xff" * 700))
            case "no weights":
                weights.unlink()
            case "config":
                config.write_text("{")
            case "other config":
                config.write_text(json.dumps({"peft_type": "PREFIX"}))
            case "no config":
                config.unlink()
        return publish(self, draft, *given, **options)

    train(ours, "good")
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "publish", spoiled)
        train(ours)
    push(ours, tmp_path / "store")
    with pytest.raises(IntegrityError, match=said) as refused:
        pull(theirs, tmp_path / "store")
    assert "news@v1" in refused.value.message
    assert "\n" not in refused.value.message
    assert ".tmp-" not in refused.value.message
    unharmed(theirs)
    assert not (tmp_path / "loaded").exists()
    assert [one.ref for one in pull(theirs, tmp_path / "store", "good")] == ["good@v1"]


def test_the_first_signer_is_pinned_and_another_is_refused(
    ours: Registry, theirs: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told, sent = tmp_path / "store", Notes(), Notes()
    train(ours)
    push(ours, store, "news", reporter=sent)
    pull(theirs, store, reporter=told)
    first = sent.told[0].split()[-1]
    assert first.startswith("ed25519:")
    assert any(first in line for line in told.told)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "someone-else"))
    train(ours, content=b"forged")
    push(ours, store, "news@v2")
    with pytest.raises(IntegrityError, match="was signed by ed25519") as refused:
        pull(theirs, store)
    assert [record.ref for record in theirs.adapters(all_versions=True)] == ["news@v1"]
    other = refused.value.hint.split()[-1]
    with pytest.raises(UsageError, match="not a signer's fingerprint"):
        pull(theirs, store, trust=["ed25519:12"])
    assert [one.moved for one in pull(theirs, store, trust=[other])] == [False, True]
    assert [one.moved for one in pull(theirs, store)] == [False, False]
    with pytest.raises(IntegrityError, match="2 keys signed"):
        pull(make_hub(tmp_path / "third"), store)


def test_another_base_is_refused(ours: Registry, tmp_path: Path) -> None:
    train(ours)
    push(ours, tmp_path / "store", "news")
    other = Registry.create(tmp_path / "other", replace(BASE, fingerprint="e" * 64))
    with pytest.raises(AdapterError, match="made for another base"):
        pull(other, tmp_path / "store")
    unharmed(other)


def test_other_content_of_the_same_name_and_number_is_refused(ours: Registry, theirs: Registry, store: str) -> None:
    train(ours)
    train(theirs, content=b"mine")
    push(ours, store, "news")
    with pytest.raises(AdapterError, match="another news@v1, with other content") as refused:
        pull(theirs, store)
    assert "--as NAME" in refused.value.hint
    with pytest.raises(AdapterError, match="another news@v1"):
        push(theirs, store, "news")
    assert pull(theirs, store, "news@v1", name="news-of-ann")[0].ref == "news-of-ann@v1"
    assert theirs.serving() == {"news": "news@v1", "news-of-ann": "news-of-ann@v1"}
    assert not pull(theirs, store, "news@v1", name="news-of-ann")[0].moved
    assert [e.evaluation.task for e in theirs.evaluations("news-of-ann")] == ["news-of-ann"]
    assert theirs.verify() == []


def test_what_was_made_here_keeps_answering_and_its_task_stays_as_it_is(
    ours: Registry, theirs: Registry, tmp_path: Path
) -> None:
    train(theirs, "mine", task="news", labels=("a", "b"))
    train(ours)
    push(ours, tmp_path / "store", "news")
    pull(theirs, tmp_path / "store")
    assert theirs.serving() == {"news": "mine@v1"}
    third = make_hub(tmp_path / "third")
    train(third, "mine", task="news", labels=("x", "y"))
    with pytest.raises(AdapterError, match="described otherwise"):
        pull(third, tmp_path / "store")
    assert third.task("news").labels == ("x", "y")


def test_a_deleted_and_a_forgotten_version_do_not_come_back(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    from adapterhub_cl.erasure.removal import forget

    train(ours)
    push(ours, tmp_path / "store", "news")
    pull(theirs, tmp_path / "store")
    theirs.delete("news@v1")
    with pytest.raises(AdapterError, match="was deleted in this hub"):
        pull(theirs, tmp_path / "store")
    third = make_hub(tmp_path / "third")
    pull(third, tmp_path / "store")
    forget(third, "news", key=tmp_path / "the.key")
    with pytest.raises(AdapterError, match=r"deleted|forgotten"):
        pull(third, tmp_path / "store", "news@v1")
    with pytest.raises(AdapterError, match="forgotten"):
        _again_as_task_of(third, tmp_path)


def _again_as_task_of(hub: Registry, tmp_path: Path) -> None:
    """A version of another adapter for the task that was forgotten, made before that."""
    source = make_hub(tmp_path / "source")
    train(source, "other", task="news", created_at="2026-01-01T00:00:00.000+00:00")
    push(source, tmp_path / "store", "other")
    pull(hub, tmp_path / "store", "other")


def test_what_was_rolled_back_from_does_not_answer_elsewhere(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    for _ in range(3):
        train(ours)
    ours.promote("news@v2")
    assert ours.serving()["news"] == "news@v2"
    push(ours, tmp_path / "store")
    assert len(pull(theirs, tmp_path / "store")) == 3
    assert theirs.serving()["news"] == "news@v2"


def test_what_answers_for_unknown_tasks_is_refused(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    train(ours)
    train(ours, "both", takes_over=["news"], serve=False)
    push(ours, tmp_path / "store")
    with pytest.raises(AdapterError, match="answers for news"):
        pull(theirs, tmp_path / "store", "both")
    assert len(pull(theirs, tmp_path / "store")) == 2


@pytest.mark.parametrize("name", ["../../evil", "/etc", "A B", "..", "\x1b[31m"])
def test_a_name_in_a_store_is_never_a_path(ours: Registry, theirs: Registry, tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"
    train(ours)
    push(ours, store, "news")
    if "/" not in name and name != "..":
        shutil.copytree(store / "versions" / "news", store / "versions" / name)
        assert [one.ref for one in pull(theirs, store)] == ["news@v1"]
    with pytest.raises(UsageError):
        pull(theirs, store, f"{name}@v1")
    with pytest.raises(UsageError):
        pull(theirs, store, "news@v1", name=name)


def test_bad_targets_are_told_in_one_line(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    train(ours)
    (tmp_path / "file").write_text("x")
    for act, said in (
        (lambda: push(ours, ours.path / "inside", "news"), "inside the hub"),
        (lambda: push(ours, "", "news"), "empty"),
        (lambda: push(ours, "nosuch://x", "news"), "cannot be opened"),
        (lambda: push(ours, tmp_path / "file", "news"), "is not a folder"),
        (lambda: push(ours, tmp_path / "s", "nothing"), "unknown"),
        (lambda: push(theirs, tmp_path / "s"), "no adapters yet"),
        (lambda: pull(theirs, tmp_path / "nowhere"), "nothing was pushed"),
        (lambda: pull(theirs, f"memory://{uuid.uuid4().hex}"), "nothing was pushed"),
    ):
        with pytest.raises(AdapterHubError, match=said) as refused:
            act()
        assert "\n" not in refused.value.message
        assert refused.value.hint
    push(ours, tmp_path / "s", "news")
    for ref in ("mood", "news@v2", "news@production"):
        with pytest.raises((UnknownNameError, UsageError)):
            pull(theirs, tmp_path / "s", ref)
    (theirs.path / "signers.json").write_text("{")
    with pytest.raises(AdapterHubError, match=r"signers\.json cannot be read"):
        pull(theirs, tmp_path / "s")


def test_a_password_in_an_address_is_not_recorded() -> None:
    assert RemoteStore("memory://ann:secret@host/x").url == "memory://ann@host/x"


# -- what breaks in the middle ------------------------------------------------------------------------------------


def breaking(monkeypatch: pytest.MonkeyPatch, method: str, at: int, error: Exception) -> None:
    """Let the store in memory raise at a call of a method."""
    from fsspec.implementations.memory import MemoryFileSystem

    real, calls = getattr(MemoryFileSystem, method), [0]

    def call(*given: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] == at:
            raise error
        return real(*given, **named)

    monkeypatch.setattr(MemoryFileSystem, method, call)


ERRORS = [
    (ConnectionResetError("gone"), "cannot be reached, or broke off"),
    (TimeoutError("slow"), "cannot be reached"),
    (PermissionError("forbidden"), "no permission"),
    (FileNotFoundError("no such bucket"), "cannot be found"),
    (OSError(28, "No space left on device"), "no space left on .*; the changes made before the error remain"),
]


@pytest.mark.parametrize(("error", "said"), ERRORS)
def test_a_push_that_breaks_off_is_told_in_one_line_and_continues(
    ours: Registry, theirs: Registry, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    store = f"memory://{uuid.uuid4().hex}"
    train(ours)
    with monkeypatch.context() as patch:
        breaking(patch, "put_file", 2, error)
        with pytest.raises(StorageError, match=said) as refused:
            push(ours, store, "news")
        assert "\n" not in refused.value.message
        assert refused.value.hint
    assert RemoteStore(store).listed() == {}
    assert push(ours, store, "news")[0].moved
    assert pull(theirs, store)[0].moved


def test_a_pull_that_breaks_off_continues_where_it_stopped(
    ours: Registry, theirs: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"memory://{uuid.uuid4().hex}"
    monkeypatch.setattr(fetching, "_CHUNK", 100)
    train(ours)
    push(ours, store, "news")
    real, reads = RemoteStore.opened, [0]

    from contextlib import contextmanager

    @contextmanager
    def fragile(self: RemoteStore, path: str, start: int = 0):  # type: ignore[no-untyped-def]
        with real(self, path, start) as file:

            class Breaking:
                def read(self, size: int) -> bytes:
                    reads[0] += 1
                    if reads[0] == 6:
                        raise ConnectionResetError("gone")
                    return file.read(size)

            yield Breaking()

    monkeypatch.setattr(RemoteStore, "opened", fragile)
    with pytest.raises(StorageError, match="broke off"):
        pull(theirs, store)
    assert theirs.adapters(all_versions=True) == []
    assert 0 < pull(theirs, store)[0].bytes < 700
    assert theirs.verify() == []


def test_a_full_disk_is_told_before_anything_is_fetched(
    ours: Registry, theirs: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(ours)
    push(ours, tmp_path / "store", "news")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(StorageError, match=r"775 bytes are to be fetched, 100 are free"):
        pull(theirs, tmp_path / "store")
    unharmed(theirs)


def test_the_manifest_says_where_a_version_came_from(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    train(ours)
    push(ours, tmp_path / "store", "news")
    pull(theirs, tmp_path / "store")
    about = theirs.get("news").manifest["shared"]
    assert about["ref"] == "news@v1"
    assert about["from"] == str(tmp_path / "store")
    push(theirs, tmp_path / "onward", "news")
    assert '\\"shared\\"' not in (tmp_path / "onward/versions/news/v1.json").read_text()
    assert json.loads((tmp_path / "onward/versions/news/v1.json").read_text()).keys() == {
        "signed",
        "signer",
        "signature",
    }


@pytest.mark.parametrize("content", [b"weights" * 100, b"other" * 100], ids=["the same", "another"])
def test_a_document_that_another_push_has_just_put_is_not_replaced(
    ours: Registry, theirs: Registry, store: str, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Both looked before either wrote: the conditional write lets one of them win."""
    train(ours)
    train(theirs, content=content)
    real = RemoteStore.put_new
    raced: list[bool] = []

    def put_new(self: RemoteStore, path: str, document: bytes) -> bool:
        if not raced:
            raced.append(True)
            push(theirs, store, "news@v1")
        return real(self, path, document)

    monkeypatch.setattr(RemoteStore, "put_new", put_new)
    if content == b"weights" * 100:
        assert [one.ref for one in push(ours, store, "news@v1")] == ["news@v1"]
    else:
        with pytest.raises(AdapterError, match="has another news@v1, with other content"):
            push(ours, store, "news@v1")
    assert raced
    assert [one.moved for one in push(theirs, store, "news@v1")] == [False]


def test_a_store_that_was_set_back_is_noticed(ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    train(ours)
    push(ours, store)
    older = tmp_path / "older"
    shutil.copytree(store, older)
    train(ours, content=b"newer" * 100)
    push(ours, store)
    notes = Notes()
    pull(theirs, store, reporter=notes)
    assert not any("any more" in line for line in notes.told)
    shutil.rmtree(store)
    older.rename(store)  # everything in it has a valid signature
    notes = Notes()
    assert [one.moved for one in pull(theirs, store, reporter=notes)] == [False]
    (told,) = (line for line in notes.told if "any more" in line)
    assert told.startswith(f"note: news@v2 came from {store} and is not there any more")
    assert theirs.get("news").ref == "news@v2"
