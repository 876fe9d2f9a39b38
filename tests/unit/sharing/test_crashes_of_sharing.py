"""Push and pull, killed or with a full disk at their writes: nothing half done is seen, and the same call goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from crashes import KILLED, Case, check, inject, state_of
from sharing_support import make_hub, pull, push, train

from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.remote_store import RemoteStore, blob
from adapterhub_cl.sharing.shared_version import read
from adapterhub_cl.sharing.signing import signing_key


def begin(hub: Path) -> None:
    """An empty hub, beside a store with two versions."""
    source = make_hub(hub.parent / "source")
    train(source)
    train(source, content=b"better" * 100, edges=[("news@v1", "updated_from")])
    push(source, hub.parent / "store", "news")
    make_hub(hub)


def pulled(hub: Path) -> str:
    return str(pull(Registry.open(hub), hub.parent / "store"))


def arrived(hub: Path) -> Mapping[str, Any]:
    return {key: value for key, value in state_of(hub).items() if key != "aliases"}


def check_pull(folder: Path, every: int) -> int:
    return check(Case(pulled, begin, arrived, steps=True), folder, every=every)


def check_push(folder: Path, every: int) -> int:
    """Stop a push at its writes into the store; what is listed there can always be pulled."""
    source = make_hub(folder / "source")
    train(source)
    train(source, content=b"better" * 100)
    signing_key()
    stops, store = 0, folder / "store"

    def act(_: Path) -> str:
        return json.dumps([one.to_json() for one in push(source, store, "news")])

    whole = inject(act, source.path, 10**9, full=False, root=store)
    assert whole.code == 0, whole.said
    for full in (False, True):
        for at in range(1, whole.writes + 1, every):
            shutil.rmtree(store)
            said = inject(act, source.path, at, full=full, root=store)
            stops += 1
            remote = RemoteStore(str(store))
            if full and said.code == 0:  # only removals were left, for which a full disk has room
                assert remote.listed() == {"news": [1, 2]}
            else:
                assert said.code == (1 if full else KILLED), f"write {at}: {said.said}"
            for number in remote.listed().get("news", []):
                shared = read(remote.read(f"versions/news/v{number}.json") or b"", "news", number, remote.url)
                assert all(remote.size(blob(row["sha256"])) == row["bytes"] for row in shared.files.values())
            again = inject(act, source.path, 10**9, full=False, root=store)
            assert again.code == 0, f"write {at}, called again: {again.said}"
            assert remote.listed() == {"news": [1, 2]}
    assert [one.moved for one in pull(make_hub(folder / "hub"), store)] == [True, True]
    return stops


def test_a_pull_that_is_stopped_goes_on(tmp_path: Path) -> None:
    assert check_pull(tmp_path, 11) >= 6


def test_a_push_that_is_stopped_goes_on(tmp_path: Path) -> None:
    assert check_push(tmp_path, 5) >= 6


@pytest.mark.slow
def test_a_pull_that_is_stopped_anywhere_goes_on(tmp_path: Path) -> None:
    assert check_pull(tmp_path, 1) > 60


@pytest.mark.slow
def test_a_push_that_is_stopped_anywhere_goes_on(tmp_path: Path) -> None:
    assert check_push(tmp_path, 1) > 30
