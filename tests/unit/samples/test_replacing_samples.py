"""Replay samples on disk: replaced or not at all, removed from all versions, held within a budget."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.errors import IntegrityError, StorageError, UnknownNameError, UsageError
from adapterhub_cl.registry import Registry, drafts, samples
from adapterhub_cl.samples.budget import Budget, parse_budget, shares
from adapterhub_cl.samples.store import Samples
from adapterhub_cl.types import AdapterRecord, Task

KILLED = """
import os, signal, sys
from adapterhub_cl.registry import Registry, drafts
registry, point = Registry.open(sys.argv[1]), sys.argv[2]
def fault(reached):
    if reached == point:
        os.kill(os.getpid(), signal.SIGKILL)
drafts.fault = fault
registry.replace_samples("news@v1", open(sys.argv[3]).read())
"""
BEFORE = ("intent written", "samples written")
AFTER = ("samples replaced", "manifest written", "manifest replaced", "row updated")


def lines(*texts: str) -> str:
    rows = [{"instruction": "", "input": text, "output": "a"} for text in texts]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def keep(hub: Registry, name: str, *texts: str) -> AdapterRecord:
    with hub.new_draft(name) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"w" * 10)
        (draft.path / "replay.jsonl").write_text(lines(*texts), encoding="utf-8")
        manifest = {"kind": "trained", "rank": 8, "replay": {"policy": "balanced", "samples": len(texts)}}
        return hub.publish(draft, manifest, task=Task(name, "choice", labels=("a", "b")))


def inputs(hub: Registry, ref: str) -> list[str]:
    return [example.input for example in Samples(hub).show(ref)]


@pytest.mark.parametrize("point", BEFORE + AFTER)
def test_a_kill_leaves_the_old_samples_or_the_new_ones(hub: Registry, tmp_path: Path, point: str) -> None:
    keep(hub, "news", "one", "two", "three")
    new = tmp_path / "new.jsonl"
    new.write_text(lines("two"))
    command = [sys.executable, "-c", KILLED, str(hub.path), point, str(new)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-9, "")
    assert (hub.path / "pending.json").exists()
    assert any(problem.path == "pending.json" for problem in hub.verify())
    opened = Registry.open(hub.path)
    assert opened.verify() == []
    assert inputs(opened, "news") == (["two"] if point in AFTER else ["one", "two", "three"])
    record = opened.get("news")
    opened.check_files(record)
    assert record.manifest["replay"]["samples"] == len(inputs(opened, "news"))
    assert (record.path / "replay.jsonl").stat().st_mode & 0o777 == 0o444
    assert sum(event.verb == "replay-drop" for event in opened.events()) == (point in AFTER)
    assert opened.rebuild() == 1
    assert opened.verify() == []


def test_a_row_goes_from_all_versions_or_from_the_one_named(hub: Registry) -> None:
    keep(hub, "news", "secret  ONE", "two")
    keep(hub, "news", "two", "Secret one", "three")
    store = Samples(hub)
    assert store.find("news", rows=[2]) == {"news@v1": [1], "news@v2": [2]}
    assert store.drop("news", rows=[2]) == 2
    assert (inputs(hub, "news@v1"), inputs(hub, "news@v2")) == (["two"], ["two", "three"])
    assert store.drop("news@v1", matching="TW") == 1
    assert (inputs(hub, "news@v1"), inputs(hub, "news@v2")) == ([], ["two", "three"])
    assert store.drop("news", matching="nothing like it") == 0
    assert store.drop("news") == 2
    assert hub.verify() == []


def three_versions(hub: Registry) -> Samples:
    for extra in "abc":
        keep(hub, "news", "secret", "two", extra)
    return Samples(hub)


def kept_now(hub: Registry) -> list[list[str]]:
    return [inputs(hub, f"news@v{number}") for number in (1, 2, 3)]


WHOLE, DROPPED = [["secret", "two", x] for x in "abc"], [["two", x] for x in "abc"]
POINTS = ("samples written", "samples replaced", "manifest written", "manifest replaced")
STOPS = [("intent written", 1), *((point, nth) for nth in (1, 2, 3) for point in POINTS), ("row updated", 1)]


def stop(monkeypatch: pytest.MonkeyPatch, point: str, nth: int, error: BaseException) -> None:
    """Let the nth arrival at a point end in an error, and all later ones."""
    left = [nth]

    def fault(reached: str) -> None:
        left[0] -= reached == point
        if left[0] <= 0:
            raise error

    monkeypatch.setattr(drafts, "fault", fault)


@pytest.mark.parametrize(("point", "nth"), STOPS)
@pytest.mark.parametrize("killed", [True, False])
def test_a_drop_from_several_versions_is_of_all_or_of_none(
    hub: Registry, monkeypatch: pytest.MonkeyPatch, point: str, nth: int, killed: bool
) -> None:
    class Killed(BaseException):
        pass

    store = three_versions(hub)
    with monkeypatch.context() as patch:
        stop(patch, point, nth, Killed() if killed else OSError(errno.ENOSPC, "No space left on device"))
        if killed:  # nothing that a process does when it is told of an error is done then
            patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed if killed else (StorageError, OSError)) as caught:
            store.drop("news", matching="secret")
    begun = "secret" not in (hub.adapters_dir / "news/v1/replay.jsonl").read_text()
    if isinstance(caught.value, StorageError):
        assert ("nothing was changed" in caught.value.message) == (not begun)
        assert ("opening the hub again will complete the change" in caught.value.message) == begun
    opened = Registry.open(hub.path)
    assert kept_now(opened) in ([WHOLE, DROPPED] if killed else [DROPPED if begun else WHOLE])
    Samples(opened).drop("news", matching="secret")
    assert (kept_now(opened), opened.verify()) == (DROPPED, [])
    assert [event.verb for event in opened.events("news")].count("replay-drop") == 3
    assert opened.rebuild() == 3


@pytest.mark.parametrize(("point", "nth"), STOPS)
def test_a_budget_and_its_cuts_are_one(hub: Registry, monkeypatch: pytest.MonkeyPatch, point: str, nth: int) -> None:
    store = three_versions(hub)
    with monkeypatch.context() as patch:
        stop(patch, point, nth, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises((StorageError, OSError)):
            store.set_budget(1)
    opened = Samples(Registry.open(hub.path))
    counts = {len(rows) for rows in kept_now(opened.registry)}
    assert (opened.budget(), counts) in ((None, {3}), (Budget(1, "samples"), {1}))
    opened.set_budget(1)
    assert {len(rows) for rows in kept_now(opened.registry)} == {1}
    assert opened.registry.verify() == []


def test_an_intent_from_an_earlier_version_is_completed(hub: Registry) -> None:
    keep(hub, "news", "secret", "two")
    record = hub.get("news")
    rows = samples._row(record, samples.Replacement("news@v1", lines("two")), "replay-drop")
    text = rows.pop("text")
    (hub.path / "pending.json").write_text(json.dumps(rows))
    path = record.path / "replay.jsonl"
    path.chmod(0o644)
    path.write_text(text)
    opened = Registry.open(hub.path)
    assert (inputs(opened, "news"), opened.verify()) == (["two"], [])


def test_what_routers_learned_from_dropped_samples_goes_with_them(hub: Registry) -> None:
    keep(hub, "news", "secret", "two")
    known = hub.path / "routers" / "embeddings" / ("0" * 32 + ".safetensors")
    known.parent.mkdir(parents=True)
    known.write_bytes(b"numbers")
    assert Samples(hub).drop("news", matching="secret") == 1
    assert not (hub.path / "routers").exists()
    assert hub.verify() == []


@pytest.mark.parametrize(("wrong", "said"), [({"rows": [3]}, "no sample 3; it has 2"), ({"matching": " "}, "empty")])
def test_what_cannot_be_dropped_is_said(hub: Registry, wrong: dict[str, object], said: str) -> None:
    keep(hub, "news", "one", "two")
    with pytest.raises(UsageError, match=said) as caught:
        Samples(hub).drop("news", **wrong)  # type: ignore[arg-type]
    assert caught.value.hint
    with pytest.raises(UnknownNameError):
        Samples(hub).show("newz")


def test_a_damaged_file_is_neither_shown_nor_made_whole(hub: Registry) -> None:
    path = keep(hub, "news", "one", "two").path / "replay.jsonl"
    path.chmod(0o644)
    path.write_text("damaged")
    for act in (lambda: Samples(hub).show("news"), lambda: hub.replace_samples("news", lines("one"))):
        with pytest.raises(IntegrityError, match="SHA-256"):
            act()
    assert not (hub.path / "pending.json").exists()
    assert Samples(hub).drop("news") == 2
    assert (inputs(hub, "news"), hub.verify()) == ([], [])


def test_the_budget_is_shared_and_cuts_from_the_end(hub: Registry) -> None:
    keep(hub, "news", *"abcdef")
    keep(hub, "news", *"ghijkl")
    keep(hub, "mood", "x")
    store = Samples(hub)
    cut = store.set_budget(4)
    assert {c.ref: (c.before, c.after) for c in cut} == {"news@v1": (6, 3), "news@v2": (6, 3)}
    assert inputs(hub, "news@v2") == ["g", "h", "i"]
    assert inputs(Registry.open(hub.path), "mood") == ["x"]
    assert store.rebalance() == []
    with pytest.raises(UsageError, match="not a replay budget"):
        store.set_budget("lots")
    assert store.budget() == Budget(4, "samples")
    size = sum(row.bytes for row in store.rows())
    store.set_budget(f"{size - 1}B")
    assert sum(row.bytes for row in store.rows()) < size
    assert store.set_budget(None) == []
    assert hub.verify() == []


def test_export_refuses_an_existing_file(hub: Registry, tmp_path: Path) -> None:
    keep(hub, "news", "one", "日本")
    target = tmp_path / "out.jsonl"
    assert Samples(hub).export(None, target) == 2
    assert json.loads(target.read_text(encoding="utf-8").splitlines()[1])["task"] == "news"
    with pytest.raises(UsageError, match="already exists"):
        Samples(hub).export("news", target)
    assert Samples(hub).export("news", target, overwrite=True) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none", None), (None, None), (200, Budget(200, "samples")), ("2MB", Budget(2_000_000, "bytes")),
     ("1.5 kb", Budget(1500, "bytes")), ("0", Budget(0, "samples"))],
)  # fmt: skip
def test_a_budget_is_read(text: object, expected: Budget | None) -> None:
    assert parse_budget(text) == expected
    if expected is not None:
        assert parse_budget(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "-1", "1.5", "2 TB", "x", True, "1.5B"])
def test_what_is_no_budget_is_refused(text: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse_budget(text)
    assert "2MB" in caught.value.hint


@given(wanted=st.dictionaries(st.text(max_size=3), st.integers(0, 50), max_size=8), total=st.integers(0, 200))
def test_shares_fill_like_water(wanted: dict[str, int], total: int) -> None:
    given_ = shares(wanted, total)
    assert list(given_) == list(wanted)
    assert sum(given_.values()) == min(total, sum(wanted.values()))
    assert all(0 <= given_[name] <= wanted[name] for name in wanted)
    unfilled = [given_[name] for name in wanted if given_[name] < wanted[name]]
    assert not unfilled or max(given_.values()) - min(unfilled) <= 1
