"""A store in a repository of the Hugging Face Hub, whose interface a server in this process stands in for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hub_stub import Repositories, hub_server
from sharing_support import pull, push, train

from adapterhub_cl.errors import AdapterError, AdapterHubError, IntegrityError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.remote_store import RemoteStore

TARGET = "hf://team/adapters"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    import fsspec
    from huggingface_hub import HfFileSystem, constants

    with hub_server() as (address, repositories):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        fsspec.register_implementation("hf", HfFileSystem, clobber=True)
        HfFileSystem.clear_instance_cache()
        yield repositories
        HfFileSystem.clear_instance_cache()


def test_a_version_goes_there_and_comes_back(hub: Repositories, ours: Registry, theirs: Registry) -> None:
    record = train(ours)
    (moved,) = push(ours, TARGET, "news")
    assert moved.ref == "news@v1"
    assert hub.private == {"team/adapters": True}
    assert "versions/news/v1.json" in hub.head("team/adapters")
    before = len(hub.commits["team/adapters"])
    push(ours, TARGET, "news")
    assert len(hub.commits["team/adapters"]) == before
    pull(theirs, TARGET, "news@v1")
    found = theirs.get("news@v1")
    assert (
        found.manifest["files"].items()
        >= {name: row for name, row in record.manifest["files"].items() if name != "replay.jsonl"}.items()
    )


def test_a_changed_byte_there_is_refused(hub: Repositories, ours: Registry, theirs: Registry) -> None:
    train(ours)
    push(ours, TARGET, "news")
    state = hub.head("team/adapters")
    path = max((path for path in state if path.startswith("blobs/")), key=lambda path: len(state[path]))
    state[path] = state[path][:-1] + bytes([state[path][-1] ^ 1])
    with pytest.raises(IntegrityError):
        pull(theirs, TARGET, "news@v1")
    assert theirs.adapters(all_versions=True) == []


def test_only_one_of_two_writers_creates_a_document(hub: Repositories, ours: Registry) -> None:
    train(ours)
    push(ours, TARGET, "news")
    store, both = RemoteStore(TARGET), threading.Barrier(2, timeout=20)
    waiting = [True]

    def meet() -> None:  # both have looked, and found nothing, before the first of them commits
        if waiting[0]:
            both.wait()
            waiting[0] = False

    hub.before_commit = meet
    made: dict[bytes, bool] = {}
    writers = [
        threading.Thread(target=lambda text=text: made.update({text: store.put_new("versions/x/v1.json", text)}))
        for text in (b"one", b"other")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(made.values()) == [False, True]
    assert made[hub.head("team/adapters")["versions/x/v1.json"]]


def test_other_content_under_the_same_number_is_refused(hub: Repositories, ours: Registry, theirs: Registry) -> None:
    train(ours)
    push(ours, TARGET, "news")
    train(theirs, content=b"others" * 100)
    with pytest.raises(AdapterError, match="news@v1"):
        push(theirs, TARGET, "news")


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_is_told_in_one_line(hub: Repositories, ours: Registry, status: int) -> None:
    train(ours)
    hub.refuse = {"/commit/": status}
    with pytest.raises(AdapterHubError) as refused:
        push(ours, TARGET, "news")
    assert "\n" not in refused.value.message
    assert refused.value.hint
    assert "hf_test" not in refused.value.message


def test_addresses_without_a_repository(hub: Repositories) -> None:
    for target in ("hf://team", "hf://", "hf://buckets/team/adapters"):
        with pytest.raises(UsageError):
            RemoteStore(target)
