"""Tombstones under a key: what they say without it, with it, and when it is lost."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from erasure_support import publish, rows

from adapterhub_cl.erasure import removal
from adapterhub_cl.erasure.proof import prove
from adapterhub_cl.erasure.removal import forget, look, strengthen
from adapterhub_cl.erasure.windows import Secret, Window, rolling
from adapterhub_cl.errors import AdapterError, IntegrityError, UnknownNameError, UsageError
from adapterhub_cl.registry import Registry, drafts, keys, tombstones

PINS = [f"{name}: {pin:04d}" for name, pin in (("pin of Ann", 4711), ("pin of Bob", 815), ("pin of Cyd", 9999))]


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(keys.VARIABLE, raising=False)


@pytest.fixture
def forgotten(hub: Registry) -> Registry:
    publish(hub, "pins", "pins", seed=1, samples=rows(PINS))
    publish(hub, "mood", "mood", seed=2, samples=rows(["what a lovely morning in the mountains"]))
    forget(hub, "pins")
    return hub


def tombstone(hub: Registry) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((hub.path / "tombstones" / "pins.json").read_text())
    return found


def candidates() -> Iterator[str]:
    for name in ("Ann", "Bob", "Cyd"):
        yield from (f"pin of {name}: {pin:04d}" for pin in range(10_000))


def guessed(hub: Registry, key: bytes = b"") -> set[str]:
    """The rows that can be found by trying, with everything that lies in the hub."""
    row = tombstone(hub)
    secret = Secret(bytes.fromhex(row["salt"]), key)
    names, shas, rolls = set(), set(), set()
    for _, name, _, windows in row["items"]:
        names.add(name)
        for window in windows:
            shas.add(window[3])
            rolls.add(Window.from_json(window, secret).key if key else window[1])
    known = {*names, *shas, *row["files"].values(), *row["rows"]}
    found = set()
    for text in candidates():
        piece = text.encode()
        plain = hashlib.sha256(secret.salt + piece).hexdigest()
        line = (json.dumps({"instruction": "", "input": text, "output": "a"}, ensure_ascii=False) + "\n").encode()
        tries = {plain, plain[:32], secret.wrapped(plain), hashlib.sha256(piece).hexdigest()[:16]}
        tries |= {hashlib.sha256(line).hexdigest(), hashlib.sha256(text.casefold().encode() + b"\0").hexdigest()[:16]}
        roll = int(rolling(np.frombuffer(piece[:16], np.uint8), [16])[0][0])
        if tries & known or roll in rolls:
            found.add(text)
    return found


def test_what_lies_in_the_hub_gives_no_row_back(forgotten: Registry) -> None:
    assert len(tombstone(forgotten)["items"]) >= len(PINS)
    assert guessed(forgotten) == set()
    key = keys.find(forgotten.path, tombstone(forgotten)["key"], None)
    assert key is not None
    assert guessed(forgotten, key.secret) == set(PINS)  # so the trying above tries the right things
    assert not key.path.is_relative_to(forgotten.path)
    assert key.path.stat().st_mode & 0o777 == 0o600
    assert not any(key.secret.hex().encode() in p.read_bytes() for p in forgotten.path.rglob("*") if p.is_file())


def test_two_tombstones_of_a_hub_have_one_key_and_two_hubs_have_two(forgotten: Registry, tmp_path: Path) -> None:
    forget(forgotten, "mood")
    made = {row["key"] for _, row in tombstones.read_all(forgotten.path)}
    assert len(made) == 1
    other = Registry.create(tmp_path / "other", forgotten.base)
    publish(other, "pins", "pins", seed=1, samples=rows(PINS))
    forget(other, "pins")
    assert tombstone(other)["key"] not in made
    assert prove(forgotten, "pins").ok
    assert prove(other, "pins").ok


def test_verify_says_that_a_removal_needs_its_key(
    hub: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "pins", "pins", seed=1, samples=rows(PINS))
    begin = {"pins": tmp_path / "own.key", "mood": None}
    publish(hub, "mood", "mood", seed=2, samples=rows(["what a lovely morning in the mountains"]))

    def fault(reached: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "fault", fault)
        for task, key in begin.items():
            with pytest.raises(KeyboardInterrupt):
                forget(hub, task, key=key)
    fixes = {problem.path: problem.fix for problem in hub.verify()}
    assert fixes["tombstones/pins.json"].startswith("cl-adapter forget-task pins --yes --key FILE")
    assert fixes["tombstones/mood.json"] == "cl-adapter forget-task mood --yes"


def test_the_second_of_two_removals_at_once_says_that_it_was_forgotten(
    hub: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "pins", "pins", seed=1, samples=rows(PINS))
    plan = look(hub, "pins")
    forget(hub, "pins")
    monkeypatch.setattr(removal, "look", lambda *_, **__: plan)
    with pytest.raises(UnknownNameError) as caught:
        forget(hub, "pins")
    assert "it was forgotten on" in caught.value.hint
    assert [path.name for path in (hub.path / "tombstones").iterdir()] == ["pins.json"]


def test_a_lost_key_is_said_and_the_registry_is_looked_at_all_the_same(forgotten: Registry, tmp_path: Path) -> None:
    path = keys.default_path(forgotten.path)
    path.rename(tmp_path / "kept.key")
    with pytest.raises(AdapterError, match="the registry has no entries of it") as caught:
        prove(forgotten, "pins")
    assert str(path) in caught.value.hint
    assert prove(forgotten, "pins", tmp_path / "kept.key").ok
    (forgotten.path / "notes.txt").write_text(PINS[0])
    assert [find.path for find in prove(forgotten, "pins", tmp_path / "kept.key").found] == ["notes.txt"]
    assert forgotten.verify() == []


def test_a_key_of_another_hub_or_none_at_all_is_refused(forgotten: Registry, tmp_path: Path) -> None:
    (tmp_path / "other.key").write_text("ab" * 32)
    for name, said in (("other.key", "of other tombstones"), ("missing.key", "there is no key")):
        with pytest.raises((AdapterError, UsageError), match=said):
            prove(forgotten, "pins", tmp_path / name)
    for text in ("ab" * 31, "xy" * 32, "", "\0"):
        (tmp_path / "other.key").write_text(text)
        with pytest.raises(UsageError, match="is not a key file"):
            prove(forgotten, "pins", tmp_path / "other.key")


def test_a_key_elsewhere_by_flag_or_by_the_environment(
    hub: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "pins", "pins", seed=1, samples=rows(PINS))
    with pytest.raises(UsageError, match="would be inside the hub"):
        forget(hub, "pins", key=hub.path / "x.key")
    assert not (hub.path / "tombstones").exists()
    forget(hub, "pins", key=tmp_path / "mine" / "pins.key")
    assert not keys.default_path(hub.path).exists()
    with pytest.raises(AdapterError, match="is missing"):
        prove(hub, "pins")
    monkeypatch.setenv(keys.VARIABLE, str(tmp_path / "mine" / "pins.key"))
    assert prove(hub, "pins").ok


class Killed(BaseException):
    pass


def stopped(hub: Registry, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    def fault(reached: str) -> None:
        if reached == point:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "fault", fault)
        with pytest.raises(Killed):
            forget(hub, "pins")


def test_a_kill_between_key_and_tombstone_leaves_a_key_that_the_next_call_takes(
    hub: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "pins", "pins", seed=1, samples=rows(PINS))
    made = keys.get_or_make(hub.path, None)
    forget(hub, "pins")
    assert tombstone(hub)["key"] == made.id
    assert len(list(made.path.parent.iterdir())) == 1


def test_a_removal_goes_on_where_its_key_was_lost(hub: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, "pins", "pins", seed=1, samples=rows(PINS))
    stopped(hub, monkeypatch, "hashes taken")
    before = tombstone(hub)
    keys.default_path(hub.path).unlink()
    forget(hub, "pins")
    assert tombstone(hub)["state"] == "done"
    assert tombstone(hub)["key"] != before["key"]
    assert prove(hub, "pins").ok


def as_before_there_were_keys(hub: Registry) -> None:
    """Write the tombstone as it would have been written without a key."""
    row = tombstone(hub)
    key = keys.find(hub.path, row["key"], None)
    assert key is not None
    secret, salt = Secret(bytes.fromhex(row["salt"]), key.secret), bytes.fromhex(row["salt"])
    texts = {Window.of(text.encode(), secret).sha: text.encode() for text in PINS}
    items = []
    for kind, name, state, windows in row["items"]:
        plain = [Window.of(texts[w[3]], Secret(salt)) for w in windows if w[3] in texts]
        if plain:
            items.append([kind, name, state, [[w.length, w.key, w.extent, w.sha] for w in plain]])
    for new in ("key", "rows", "sources", "everywhere"):
        del row[new]
    row |= {"format": 1, "items": items}
    (hub.path / "tombstones" / "pins.json").write_text(json.dumps(row))


def test_a_tombstone_from_before_there_were_keys_is_read_said_to_be_weak_and_put_under_one(
    forgotten: Registry,
) -> None:
    as_before_there_were_keys(forgotten)
    assert prove(forgotten, "pins").samples == len(PINS)
    assert set(PINS) <= {t for t in candidates() if t in _tried(forgotten)}
    (problem,) = forgotten.verify()
    assert (problem.path, problem.fix) == ("tombstones/pins.json", "cl-adapter verify --repair")
    assert "weak" in problem.problem
    assert len(strengthen(forgotten)) == 1
    assert strengthen(forgotten) == []
    assert forgotten.verify() == []
    assert not set(PINS) & _tried(forgotten)
    assert prove(forgotten, "pins").samples == len(PINS)
    (forgotten.path / "notes.txt").write_text(PINS[1])
    assert [find.path for find in prove(forgotten, "pins").found] == ["notes.txt"]


def _tried(hub: Registry) -> set[str]:
    row = tombstone(hub)
    salt = bytes.fromhex(row["salt"])
    shas = {window[3] for _, _, _, windows in row["items"] for window in windows}
    return {text for text in PINS if hashlib.sha256(salt + text.encode()).hexdigest() in shas}


WRONG = [
    {"task": 3}, {"task": ["a"]}, {"task": "../x"}, {"state": "gone"}, {"started_at": 5}, {"finished_at": None},
    {"finished_at": ""}, {"salt": "zz"}, {"salt": 1}, {"versions": {}}, {"versions": [1]}, {"versions": [{"ref": "x"}]},
    {"versions": [{"ref": "../../x@v1", "why": "", "does": ""}]}, {"items": 3}, {"items": [[1]]}, {"folders": "x"},
    {"items": [["sample", "x", "searched", [[1, 2, 3]]]]},
    {"items": [["sample", "x", "searched", [[1, 2**40, 3, ""]]]]},
    {"items": [["other", "x", "searched", []]]}, {"files": []}, {"files": {"a": 1}}, {"counts": {"a": "b"}},
    {"counts": None}, {"tasks_without_adapter": [3]}, {"since": 4}, {"key": 5}, {"format": 99}, {"format": "2"},
    {"rows": "ab"}, {"everywhere": "yes"},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=[json.dumps(w)[:50] for w in WRONG])
def test_a_tombstone_of_a_wrong_type_is_named_and_breaks_nothing(forgotten: Registry, wrong: dict[str, Any]) -> None:
    path = forgotten.path / "tombstones" / "pins.json"
    path.write_text(json.dumps({**tombstone(forgotten), **wrong}))
    (problem,) = forgotten.verify()
    assert (problem.path, problem.problem) == ("tombstones/pins.json", "not a valid tombstone")
    opened = Registry.open(forgotten.path)
    assert opened.repair() == []
    assert opened.rebuild() == 1
    assert look(opened, "mood").versions
    forget(opened, "mood")
    with pytest.raises(IntegrityError, match="is damaged"):
        prove(opened, "pins")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_configuration_that_cannot_be_written_is_told_before_anything_goes(hub: Registry, tmp_path: Path) -> None:
    from adapterhub_cl.errors import StorageError

    (tmp_path / "config").mkdir(mode=0o500)
    publish(hub, "pins", "pins", seed=1, samples=rows(PINS))
    with pytest.raises(StorageError, match="nothing was changed"):
        forget(hub, "pins")
    assert hub.get("pins").ref == "pins@v1"
