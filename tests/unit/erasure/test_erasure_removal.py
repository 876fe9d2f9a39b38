"""The removal: nothing is left, whatever happens on the way, and everything else stays as it was."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from erasure_support import SECRETS, Repeater, haystack, needles, publish, rows, traces, tree
from filelock import FileLock

from adapterhub_cl.erasure.proof import prove
from adapterhub_cl.erasure.removal import forget, look
from adapterhub_cl.errors import (
    AdapterError,
    GateRefused,
    IntegrityError,
    StorageError,
    TrainingError,
    UnknownNameError,
)
from adapterhub_cl.registry import Registry, drafts, tombstones
from adapterhub_cl.samples.store import Samples
from adapterhub_cl.types import AdapterRecord

POINTS = (
    "tombstone begun",
    "made again",
    "samples dropped",
    "hashes taken",
    "rows erased",
    "version removed",
    "folder removed",
    "index scrubbed",
)
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from erasure_support import Repeater
from adapterhub_cl.erasure.removal import forget
from adapterhub_cl.registry import Registry, drafts
registry, point, left = Registry.open(sys.argv[1]), sys.argv[2], int(sys.argv[4])
def fault(reached):
    global left
    if reached == point:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
drafts.fault = fault
forget(registry, "news", Repeater(registry))
"""


def stopped_at(point: str, hub: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget news up to a point."""

    def fault(reached: str) -> None:
        if reached == point:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "fault", fault)
        with pytest.raises(KeyboardInterrupt):
            forget(hub, "news", Repeater(hub))


def check_all_gone(hub: Registry, wanted: list[bytes]) -> None:
    """Everything that must hold after news was forgotten."""
    assert traces(hub, wanted) == []
    assert [problem.path for problem in hub.verify()] == ["runs/mood-1"]  # an unfinished run of another task
    assert prove(hub, "news").ok
    assert sorted(r.ref for r in hub.adapters(all_versions=True)) == [
        "both@v2", "calm@v1", "mood@v1", "slim@v2", "topics@v1",
    ]  # fmt: skip
    assert hub.serving() == {"mood": "both@v2", "topics": "topics@v1"}
    assert hub.aliases()["both"] == {"latest": 2, "production": 2}
    assert hub.aliases()["slim"] == {"latest": 2, "tiny": 2}
    assert [task.name for task in hub.tasks()] == ["mood", "solo", "topics"]
    assert {score.evaluation.task for score in hub.evaluations()} == {"mood"}
    assert [e.input for e in Samples(hub).show("mood")] == ["what a lovely morning in the mountains of Norway"]
    assert not [name for name in haystack(hub.path) if name.startswith(("adapters/news", "logs/news", "routers/"))]
    assert sorted(p.name for p in hub.runs_dir.iterdir()) == ["mood-1"]
    assert sorted(p.name for p in (hub.path / "streams").iterdir()) == ["mood"]
    assert (hub.path / "logs" / "mood" / "events").exists()
    assert sum(event.verb == "forget-task" for event in hub.events()) == 1
    for record in hub.adapters(all_versions=True):
        assert not {"news@v1", "news@v2"} & {edge.parent for edge in hub.lineage(record.ref)}


def test_nothing_is_left_and_the_rest_is_as_it_was(world: Registry) -> None:
    wanted = needles(world)
    assert len(traces(world, wanted)) > len(wanted)  # the search by hand does find them before
    calm = tree(world.adapters_dir / "calm")
    repeater = Repeater(world)
    done = forget(world, "news", repeater)
    check_all_gone(world, wanted)
    assert tree(world.adapters_dir / "calm") == calm
    assert [ref for ref, _ in repeater.asked] == ["both@v1", "slim@v1"]
    assert repeater.asked[0][1]["both@v1"] is None
    assert repeater.asked[1][1]["both@v1"] == "both@v2"
    told = {v.ref: (v.does, v.replacement) for v in done.versions}
    assert told["both@v1"] == ("re-derived", "both@v2")
    assert told["slim@v1"] == ("re-derived", "slim@v2")
    assert told["solo@v1"] == ("retired", None)
    assert (done.tasks_without_adapter, done.tombstone) == (("solo",), "news.json")


def test_a_copy_of_unreadable_aliases_goes_too(world: Registry) -> None:
    copy = world.path / "aliases.json.broken-20260101T000000"
    copy.write_text('{"tasks": {"news": ')
    forget(world, "news", Repeater(world))
    assert not copy.exists()


def test_a_task_that_only_a_derived_adapter_serves_is_served_by_what_takes_its_place(world: Registry) -> None:
    world.set_status("calm@v1", "rejected")
    world.set_status("mood@v1", "rejected")
    assert world.serving()["mood"] == "both@v1"
    assert "mood" in look(world, "news").tasks_without_adapter  # it may be that both cannot be made again

    def repeat(record: AdapterRecord, gone: object) -> AdapterRecord | None:
        return publish(world, record.name, seed=98, kind="merged", takes_over=["mood"], serve=False)

    done = forget(world, "news", repeat)
    assert (done.tasks_without_adapter, world.serving()["mood"]) == (("solo",), "both@v2")


def test_numbers_are_not_used_again(world: Registry) -> None:
    forget(world, "news", Repeater(world))
    assert publish(world, "news", "fresh", seed=60).ref == "news@v3"
    assert publish(world, "solo", "solo", seed=61).ref == "solo@v2"


def test_without_a_way_to_make_them_again_derived_versions_are_retired(world: Registry) -> None:
    done = forget(world, "news")
    assert {v.ref for v in done.versions if v.does == "retired"} == {"topics@v2", "solo@v1", "both@v1", "slim@v1"}
    assert world.serving() == {"mood": "mood@v1", "topics": "topics@v1"}
    assert "both" not in world.aliases()
    assert prove(world, "news").ok


@pytest.mark.parametrize("how", ["none", "refused", "rejected", "still of it"])
def test_what_cannot_be_made_again_is_retired_with_the_reason(world: Registry, how: str) -> None:
    def repeat(record: AdapterRecord, gone: object) -> AdapterRecord | None:
        if how == "none":
            return None
        if how == "refused":
            raise GateRefused("it forgets too much")
        if how == "rejected":
            return publish(world, record.name, seed=99, kind="merged", status="rejected")
        return publish(world, record.name, seed=99, kind="merged", edges=[("news@v2", "merged_from")])

    done = forget(world, "news", repeat)
    assert {v.ref: v.does for v in done.versions}["both@v1"] == "retired"
    assert {"none": "too little is left", "refused": "too much"}.get(how, "its replacement") in done.reasons["both@v1"]
    assert world.serving()["mood"] == "mood@v1"
    assert prove(world, "news").ok


def test_an_error_that_is_not_about_the_version_stops_before_anything_goes(world: Registry) -> None:
    def repeat(record: AdapterRecord, gone: object) -> AdapterRecord | None:
        raise StorageError("no space left on /; nothing was changed", "free some space")

    before = tree(world.adapters_dir)
    with pytest.raises(StorageError, match="news is not completely removed yet") as caught:
        forget(world, "news", repeat)
    assert "forget-task news --yes" in caught.value.hint
    assert tree(world.adapters_dir) == {name: sha for name, sha in before.items() if ".tmp-" not in name}
    said = [problem for problem in world.verify() if problem.path == "tombstones/news.json"]
    assert [problem.fix for problem in said] == ["cl-adapter forget-task news --yes"]


@pytest.mark.parametrize(
    ("point", "times"), [*((point, 1) for point in POINTS), ("made again", 2), ("version removed", 3)]
)
def test_a_kill_anywhere_is_completed_by_the_same_call(world: Registry, point: str, times: int) -> None:
    wanted = needles(world)
    command = [sys.executable, "-c", KILLED, str(world.path), point, str(Path(__file__).parent), str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-9, "")
    opened = Registry.open(world.path)
    assert any(problem.path == "tombstones/news.json" for problem in opened.verify())
    with pytest.raises(AdapterError, match="interrupted"):
        prove(opened, "news")
    told = forget(opened, "news", Repeater(opened))
    assert {v.ref: v.does for v in told.versions} == {
        "news@v1": "removed",
        "news@v2": "removed",
        "topics@v2": "retired",
        "solo@v1": "retired",
        "both@v1": "re-derived",
        "slim@v1": "re-derived",
    }
    check_all_gone(opened, wanted)
    assert prove(opened, "news").samples == 9  # none is lost, and none counted twice
    assert told.tasks_without_adapter == ("solo",)
    assert (told.samples, told.evaluations) == (9, 4)


@pytest.mark.parametrize("point", ["tombstone begun", "rows erased", "version removed", "index scrubbed"])
def test_a_rebuilt_index_between_does_no_harm(world: Registry, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    wanted = needles(world)
    stopped_at(point, world, monkeypatch)
    Registry.rebuild_at(world.path)
    opened = Registry.open(world.path)
    forget(opened, "news", Repeater(opened))
    check_all_gone(opened, wanted)


@pytest.mark.parametrize("lost", [(), ("index.db",), ("index.db", "aliases.json")])
def test_a_rebuilt_index_does_not_bring_it_back(world: Registry, lost: tuple[str, ...]) -> None:
    wanted = needles(world)
    forget(world, "news", Repeater(world))
    for name in lost:
        (world.path / name).unlink()
    assert Registry.rebuild_at(world.path) == 5
    opened = Registry.open(world.path)
    assert "news" not in [task.name for task in opened.tasks()]
    assert "news" not in opened.serving()
    assert {score.evaluation.task for score in opened.evaluations()} == {"mood"}
    assert prove(opened, "news").ok
    assert traces(opened, wanted) == []
    assert publish(opened, "news", "news", seed=70).ref == "news@v3"
    if not lost:
        check = [row for row in opened.evaluations() if row.evaluation.task == "mood"]
        assert check


def test_old_scores_that_come_back_stay_out(world: Registry) -> None:
    old = next(row for row in (world.path / "evaluations.jsonl").read_text().splitlines() if '"mood@v1"' in row)
    forget(world, "news")
    with (world.path / "evaluations.jsonl").open("a") as file:
        file.write(old + "\n" + old.replace('"task": "news"', '"task": "mood"') + "\n")
    Registry.rebuild_at(world.path)
    found = [(row.evaluation.task, row.evaluation.value) for row in Registry.open(world.path).evaluations()]
    assert found == [("mood", 0.9), ("mood", 0.31)]


def test_a_version_that_a_copy_brought_back_is_left_out_and_found(world: Registry, tmp_path: Path) -> None:
    shutil.copytree(world.adapters_dir / "news" / "v2", tmp_path / "v2")
    forget(world, "news", Repeater(world))
    shutil.copytree(tmp_path / "v2", world.adapters_dir / "news" / "v2")
    (world.path / "aliases.json").unlink()
    Registry.rebuild_at(world.path)
    opened = Registry.open(world.path)
    assert "news" not in {record.name for record in opened.adapters()}
    proof = prove(opened, "news")
    assert {find.path for find in proof.found} >= {"adapters/news/v2", "adapters/news/v2/replay.jsonl"}


def test_learned_again_and_forgotten_again(world: Registry) -> None:
    forget(world, "news", Repeater(world))
    text = "An entirely new line of news, about the weather in Lisbon and its harbour"
    publish(world, "news", "news", seed=80, samples=rows([text]), scores={"news": 0.7})
    assert Registry.rebuild_at(world.path) == 6
    assert world.evaluations(task="news") != []  # what is newer than the tombstone is not forgotten
    with pytest.raises(AdapterError, match="learned again") as caught:
        prove(world, "news")
    assert "forget-task news" in caught.value.hint
    done = forget(world, "news", Repeater(world))
    assert [v.ref for v in done.versions] == ["news@v3"]
    assert done.tombstone == "news-2.json"
    proof = prove(world, "news")
    assert (proof.ok, proof.tombstones) == (True, ("news.json", "news-2.json"))
    assert proof.samples == 9 + 1
    (world.path / "notes.txt").write_text(f"{SECRETS[0]}; {text}")
    assert len({find.what for find in prove(world, "news").found}) == 1
    assert {find.offset for find in prove(world, "news").found} > {0}


@pytest.mark.parametrize("where", ["runs/news-1/.lock", "runs/reader-1/.lock", "runs/.online-news.lock"])
def test_a_run_that_is_going_on_is_not_pulled_away(world: Registry, where: str) -> None:
    path = world.path / where
    with FileLock(path):
        before = tree(world.adapters_dir)
        with pytest.raises(TrainingError, match=r"another process is working on .*; nothing was removed"):
            forget(world, "news")
        gone = {name for name in before if ".tmp-" in name}
        assert tree(world.adapters_dir).keys() == before.keys() - gone
        assert not (world.path / "tombstones").exists()
    forget(world, "news")
    assert prove(world, "news").ok


def test_a_run_of_another_task_is_left_in_peace(world: Registry) -> None:
    with FileLock(world.runs_dir / "mood-1" / ".lock"):
        forget(world, "news")
    assert (world.runs_dir / "mood-1" / "run.json").exists()


def test_the_log_keeps_what_happened_and_no_more(world: Registry) -> None:
    world.add_event("note", "news@v2", {"text": SECRETS[0]})
    forget(world, "news")
    events = {event.ref: event for event in reversed(world.events())}
    assert events["news@v2"].detail == {}
    assert events["mood@v1"].detail != {}
    moves = [row[:3] for row in json.loads((world.path / "aliases.json").read_text())["history"]]
    assert ["mood", "latest", 1] in moves
    assert not {("news", 1), ("news", 2), ("both", 1), ("slim", 1)} & {(name, version) for name, _, version in moves}
    last = world.events("news")[0]
    assert (last.verb, last.detail["tombstone"], last.detail["versions"]) == ("forget-task", "news.json", 6)


def test_the_index_and_its_journal_hold_no_freed_page(world: Registry) -> None:
    marker = "a marker that stands in a row of the index only"
    world.add_event("note", "news@v2", {"text": marker})
    reader = sqlite3.connect(world.path / "index.db")
    reader.execute("SELECT count(*) FROM events").fetchone()  # keeps the journal alive beyond the last writer
    assert any(marker.encode() in data for data in haystack(world.path).values())
    forget(world, "news")
    assert not any(marker.encode() in data for data in haystack(world.path).values())
    reader.close()


def test_the_tombstone_holds_hashes_only(world: Registry) -> None:
    forget(world, "news", Repeater(world))
    row = tombstones.read(world.path / "tombstones" / "news.json")
    assert row is not None
    assert row["state"] == "done"
    text = json.dumps(row, ensure_ascii=False)
    assert not any(part in text for secret in SECRETS for part in secret.split() if len(part) > 8)
    assert "adapters/news/v2/replay.jsonl" in row["files"]
    assert all(len(sha) == 64 for sha in row["files"].values())
    for _, _, state, windows in row["items"]:
        assert (state == "searched") == bool(windows)
        assert all(key < 2**32 for _, key, _, _ in windows)  # half of the rolling hash says too little


def test_a_tombstone_cannot_lead_out_of_the_hub(
    world: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at("rows erased", world, monkeypatch)
    path = world.path / "tombstones" / "news.json"
    outside = tmp_path / "outside"
    outside.mkdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "folders": ["../outside"]}))
    with pytest.raises(StorageError, match="does not belong to this hub"):
        forget(world, "news")
    assert outside.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_hub_that_cannot_be_written(world: Registry) -> None:
    world.path.chmod(0o555)
    try:
        with pytest.raises(StorageError):
            forget(world, "news")
    finally:
        world.path.chmod(0o755)


def test_a_full_disk_is_said_and_gone_on_from(world: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.registry import files

    real = files.remove_tree

    def refuse(path: Path) -> None:
        if path.name == "v2":
            raise StorageError(f"no permission to write {path}; nothing was changed", "check its owner")
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_tree", refuse)
        with pytest.raises(StorageError, match="news is not completely removed yet"):
            forget(world, "news")
    assert look(world, "news").tombstone == "news.json"
    forget(world, "news")
    assert prove(world, "news").ok


@pytest.mark.parametrize("text", ["", "{", "[]"])
@pytest.mark.parametrize("name", ["news.json", "news-2.json"])
def test_a_damaged_tombstone_is_named_by_the_proof(hub: Registry, text: str, name: str) -> None:
    (hub.path / "tombstones").mkdir()
    (hub.path / "tombstones" / name).write_text(text)
    with pytest.raises(IntegrityError, match=f"tombstones/{name} is damaged"):
        prove(hub, "news")
    with pytest.raises(UnknownNameError):
        prove(hub, "mood")


def test_rows_of_a_task_that_a_stopped_rebase_wrote_down_go(hub: Registry) -> None:
    written = hub.path / "rebase" / "mail"
    written.mkdir(parents=True)
    (written / "train.jsonl").write_text(rows(SECRETS), encoding="utf-8")
    assert look(hub, "mail").others == ("rebase/mail",)
    forget(hub, "mail")
    assert not written.exists()
    assert traces(hub, [secret.encode() for secret in SECRETS]) == []
    assert prove(hub, "mail").found == ()
    with pytest.raises(UnknownNameError):
        forget(hub, "mail")
