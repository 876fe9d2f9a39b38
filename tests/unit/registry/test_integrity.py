from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from registry_support import Publish, publish_into

from adapterhub_cl.errors import IntegrityError, StorageError
from adapterhub_cl.registry import Registry, changes, drafts, files, manifests, writes
from adapterhub_cl.registry.checks import Garbage
from adapterhub_cl.types import Evaluation, Task

FULL = OSError(files.errno.ENOSPC, "No space left on device")
PUBLISH = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from registry_support import publish_into
from adapterhub_cl.registry import Registry, drafts
registry, point, count = Registry.open(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def fault(reached):
    if reached == point:
        os.kill(os.getpid(), signal.SIGKILL)
drafts.fault = fault
for _ in range(count):
    print(publish_into(registry).ref, flush=True)
"""


def start(hub: Registry, point: str = "", count: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PUBLISH, str(Path(__file__).parents[2]), str(hub.path), point, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.name != ".lock"
    }


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("point", ["sealed", "manifest written", "renamed", "rows inserted", "committed"])
def test_a_killed_publication_leaves_the_old_state_or_the_whole_version(
    hub: Registry, publish: Publish, point: str
) -> None:
    publish()
    process = start(hub, point)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (-9, "", "")
    opened = Registry.open(hub.path)
    for record in opened.adapters(all_versions=True):
        opened.check_files(record)
    problems = opened.verify()
    assert [problem.fix for problem in problems] == ["cl-adapter verify --repair"] * (point != "committed")
    if point in ("sealed", "manifest written"):
        assert problems[0].path.startswith("adapters/news/.tmp-")
        expected = ["news@v1"]
    elif point in ("renamed", "rows inserted"):
        assert problems[0].path == "adapters/news/v2"
        assert opened.get("news").ref == "news@v1"
        expected = ["news@v1", "news@v2"]
    else:  # aliases.json followed when the hub was opened
        assert opened.get("news").ref == "news@v2"
        assert '"news@v2"' in (hub.path / "aliases.json").read_text()
        expected = ["news@v1", "news@v2"]
    assert bool(opened.repair()) == (point != "committed")
    assert opened.verify() == []
    assert [record.ref for record in opened.adapters(all_versions=True)] == expected
    assert opened.get("news").ref == expected[-1]
    assert opened.serving() == {"news": expected[-1]}
    assert publish().version == len(expected) + 1


def test_publishing_goes_on_after_a_kill_without_repair_too(hub: Registry, publish: Publish) -> None:
    process = start(hub, "renamed")
    process.communicate()
    assert publish().ref == "news@v2"
    assert hub.repair() == ["adopted adapters/news/v1"]
    assert hub.get("news").ref == "news@v2"
    assert hub.serving() == {"news": "news@v2"}


def test_two_processes_publish_the_same_name(hub: Registry) -> None:
    both = [start(hub, count=5), start(hub, count=5)]
    outputs = [process.communicate() for process in both]
    assert [err for _, err in outputs] == ["", ""]
    refs = [ref for out, _ in outputs for ref in out.split()]
    assert sorted(refs, key=lambda ref: int(ref[6:])) == [f"news@v{number}" for number in range(1, 11)]
    assert hub.get("news").ref == "news@v10"
    assert hub.verify() == []


@pytest.mark.parametrize("after", range(4))
def test_a_full_disk_while_publishing_changes_nothing(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    publish()
    before = snapshot(hub.path)
    synced = 0

    def fsync(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced > after:
            raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        with pytest.raises(StorageError, match=r"no space left on .*; nothing was changed"):
            publish()
    assert snapshot(hub.path) == before
    assert hub.verify() == []
    assert publish().ref == "news@v2"


def test_a_full_disk_while_writing_the_manifest_changes_nothing(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    before = snapshot(hub.path)

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:20])
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        with pytest.raises(StorageError):
            publish()
    assert snapshot(hub.path) == before


@pytest.mark.parametrize("step", ["insert_version", "apply_moves", "publish_event"])
def test_an_error_after_the_rename_takes_the_version_back(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:

    publish()
    before = snapshot(hub.path)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(writes, step, full)
        with pytest.raises(StorageError, match="no space left"):
            publish()
    assert snapshot(hub.path) == before
    assert hub.verify() == []


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        RuntimeError("I/O error: No space left on device (os error 28)"),
        OSError("11264 requested and 5248 written"),  # numpy
    ],
)
def test_a_full_disk_while_the_draft_is_written(hub: Registry, error: Exception) -> None:
    def write_half() -> None:
        with hub.new_draft("news") as draft:
            (draft.path / "half").write_bytes(b"half")
            raise error

    with pytest.raises(StorageError, match="no space left"):
        write_half()
    assert list(hub.adapters_dir.iterdir()) == []


def test_a_full_disk_refuses_before_the_index_says_what_aliases_json_cannot(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    before = snapshot(hub.path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", lambda *_: (_ for _ in ()).throw(FULL))
        with pytest.raises(StorageError, match="nothing was changed"):
            hub.set_alias("news", "production")
    assert snapshot(hub.path) == before
    assert (hub.aliases(), hub.verify()) == ({"news": {"latest": 1}}, [])


def test_aliases_json_that_could_not_follow_does_when_the_hub_is_next_opened(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish()
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name == "aliases.json":
            raise FULL
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        hub.set_alias("news", "production")
    assert "aliases.json could not be written" in caplog.text
    assert [problem.path for problem in hub.verify()] == ["aliases.json"]
    opened = Registry.open(hub.path)
    assert (opened.get("production").ref, opened.verify()) == ("news@v1", [])
    assert not (hub.path / "aliases.json.next").exists()


@pytest.mark.parametrize("lost", ["index.db", "aliases.json"])
def test_a_change_whose_commit_was_not_followed_survives_the_loss_of_either(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    publish()
    publish()

    class Killed(BaseException):
        pass

    def killed(point: str) -> None:
        if point == "committed":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "fault", killed)
        with pytest.raises(Killed):
            hub.set_alias("news@v1", "production")
    for path in hub.path.glob(f"{lost}*"):
        if path.name != "aliases.json.next":
            path.unlink()
    opened = Registry.open(hub.path)
    assert opened.aliases() == {"news": {"latest": 2, "production": 1}}
    assert opened.verify() == []


def test_scores_whose_file_did_not_follow_are_there_after_a_rebuild(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    hub.add_evaluations("news", [Evaluation("a", "accuracy", 0.1, 1)])
    with monkeypatch.context() as patch:
        patch.setattr(files, "append_synced", lambda path, data: (_ for _ in ()).throw(FULL))
        hub.add_evaluations("news", [Evaluation("b", "accuracy", 0.2, 1)])
    assert [(p.path, p.fix) for p in hub.verify()] == [("evaluations.jsonl", "cl-adapter verify --repair")]
    opened = Registry.open(hub.path)
    assert opened.verify() == []
    opened.rebuild()
    assert sorted(row.evaluation.task for row in opened.evaluations()) == ["a", "b"]


def test_a_commit_that_the_disk_made_but_did_not_confirm_is_no_failure(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy.engine import RootTransaction

    publish()
    commit = RootTransaction.commit

    def unconfirmed(self: RootTransaction) -> None:
        commit(self)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(RootTransaction, "commit", unconfirmed)
    assert hub.set_alias("news", "production").aliases == ("latest", "production")
    assert "the change was saved" in caplog.text


def test_a_message_tells_of_what_was_done_before(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    with changes.operation():
        hub.set_alias("news", "canary")
        monkeypatch.setattr(files, "write_all", lambda *_: (_ for _ in ()).throw(FULL))
        with pytest.raises(StorageError, match="; the changes made before the error remain"):
            hub.set_alias("news", "production")


def test_every_kind_of_damage_is_named(hub: Registry, publish: Publish) -> None:
    record = publish(content=b"0123456789")
    weights, training = record.path / "adapter_model.safetensors", record.path / "extra" / "training.json"

    def problems() -> list[tuple[str, str]]:
        return [(p.path.removeprefix("adapters/news/v1").strip("/"), p.problem.split(":")[0]) for p in hub.verify()]

    writable(weights).write_bytes(b"0123456780")
    assert problems() == [("adapter_model.safetensors", "changed")]
    with pytest.raises(IntegrityError, match=r"adapter_model.safetensors of news@v1: changed"):
        hub.check_files(record)
    weights.write_bytes(b"01234")
    assert problems() == [("adapter_model.safetensors", "has 5 bytes, but 10 were recorded")]
    with pytest.raises(IntegrityError, match="has 5 bytes"):
        hub.check_files(record)
    weights.unlink()
    assert problems() == [("adapter_model.safetensors", "missing")]
    with pytest.raises(IntegrityError, match="missing"):
        hub.check_files(record)
    outside = hub.path.parent / "outside"
    outside.write_bytes(b"0123456789")
    weights.symlink_to(outside)
    assert problems() == [("adapter_model.safetensors", "a link or special file, which is not allowed in a version")]
    with pytest.raises(IntegrityError, match="a link"):
        hub.check_files(record)
    weights.unlink()
    weights.write_bytes(b"0123456789")
    (record.path / "virus.bin").write_bytes(b"")
    assert problems() == [("virus.bin", "extra")]
    (record.path / "virus.bin").unlink()
    manifest = writable(record.path / "manifest.json")
    text = manifest.read_text()
    manifest.write_text(text.replace("kept", "lost"))
    assert problems() == [("manifest.json", "changed")]
    with pytest.raises(IntegrityError, match=r"manifest.json of news@v1: changed"):
        hub.check_files(record)
    manifest.unlink()
    with pytest.raises(IntegrityError, match=r"manifest.json of news@v1: missing"):
        hub.check_files(record)
    manifest.write_text(text)
    training.unlink()
    training.parent.rmdir()
    assert problems() == [("extra/training.json", "missing")]
    files.remove_tree(record.path)
    assert problems() == [("", "missing, but news@v1 is in the index")]
    assert hub.rebuild() == 0
    assert hub.adapters() == []


def test_strays_and_links_in_the_store_are_named(hub: Registry, publish: Publish, tmp_path: Path) -> None:
    record = publish()
    (hub.adapters_dir / "notes.txt").write_text("")
    (hub.adapters_dir / "linked").symlink_to(tmp_path)
    (hub.adapters_dir / "news" / "v9").symlink_to(record.path)
    (hub.adapters_dir / "news" / "v02").mkdir()
    found = [(problem.path, problem.problem) for problem in hub.verify()]
    assert found == [
        ("adapters/linked", "not an adapter's directory"),
        ("adapters/news/v02", "not a version's directory"),
        ("adapters/news/v9", "not a version's directory"),
        ("adapters/notes.txt", "not an adapter's directory"),
    ]
    assert hub.rebuild() == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": {"../../../outside": {"sha256": "0", "bytes": 1}}}, "points outside of the directory"),
        ({"files": {"/etc/passwd": {"sha256": "0", "bytes": 1}}}, "points outside of the directory"),
        ({"files": {"a": 3}}, "no sha256"),
        ({"name": "../news"}, "it belongs to"),
        ({"version": 2}, "it belongs to"),
        ({"format": 99}, "format 99"),
        ({"kind": "grown"}, "unknown kind"),
        ({"rank": "8"}, "rank is missing or not a whole number"),
        ({"published": {}}, "published"),
    ],
)
def test_a_manifest_that_lies_is_never_adopted(
    hub: Registry, publish: Publish, change: dict[str, object], said: str
) -> None:
    record = publish()
    manifest = writable(record.path / "manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(IntegrityError, match=said):
        manifests.read(record.path)
    with closing(sqlite3.connect(hub.path / "index.db")) as connection:  # else it is written back from the index
        connection.execute("UPDATE versions SET manifest_sha256 = ''")
        connection.commit()
    assert hub.rebuild() == 0
    assert hub.repair() == ["wrote aliases.json"]
    assert said in hub.verify()[0].problem


def test_a_version_that_is_not_whole_is_not_adopted(hub: Registry, publish: Publish) -> None:
    record = publish()
    writable(record.path / "adapter_model.safetensors").write_bytes(b"other")
    with closing(sqlite3.connect(hub.path / "index.db")) as connection:
        for table in ("aliases", "serving", "evaluations", "versions"):
            connection.execute(f"DELETE FROM {table}")
        connection.commit()
    kept = "reserved the version number of news@v1, which is missing from the index"
    assert hub.repair() == [kept, "wrote aliases.json"]
    assert hub.adapters() == []
    assert "incomplete: adapter_model.safetensors has 5 bytes" in hub.verify()[0].problem


def test_rows_that_dangle_are_named_and_dropped(hub: Registry, publish: Publish) -> None:
    publish()
    with closing(sqlite3.connect(hub.path / "index.db")) as connection:
        connection.execute("INSERT INTO aliases VALUES ('news', 'production', 9)")
        connection.execute("UPDATE serving SET version = 9")
        connection.commit()
    assert [problem.problem for problem in hub.verify() if problem.path == "index.db"] == [
        "the alias production names news@v9, which does not exist",
        "the task news names news@v9, which does not exist",
    ]
    assert len(hub.repair()) == 3
    assert hub.verify() == []
    assert (hub.aliases(), hub.serving()) == ({"news": {"latest": 1}}, {})


def test_leftovers_of_dead_and_of_very_old_processes(hub: Registry) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = hub.adapters_dir / "news" / f".tmp-{process.pid}-aa"
    dead.mkdir(parents=True)
    (dead / "w").write_bytes(b"12345")
    living = hub.adapters_dir / "news" / f".tmp-{os.getpid()}-bb"
    living.mkdir()
    assert [problem.path for problem in hub.verify()] == [f"adapters/news/{dead.name}"]
    assert [(item.path, item.bytes) for item in hub.garbage()] == [(dead, 5)]
    os.utime(living, (0, time.time() - 90_000))
    assert len(hub.verify()) == 2
    assert len(hub.repair()) == 2
    assert hub.verify() == []


def test_leftovers_among_the_routers(hub: Registry, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    folder = hub.path / "routers" / "analytic-1"
    folder.mkdir(parents=True)
    (folder / f".tmp-{process.pid}-aa").write_bytes(b"123")
    (folder / "state.safetensors").write_bytes(b"12345")
    assert [problem.path for problem in hub.verify()] == [f"routers/analytic-1/.tmp-{process.pid}-aa"]
    assert len(hub.repair()) == 1
    assert [path.name for path in folder.iterdir()] == ["state.safetensors"]
    (tmp_path / f".tmp-{process.pid}-bb").write_bytes(b"not this hub's")
    (hub.path / "routers" / "centroid-1").symlink_to(tmp_path)
    assert hub.verify() == []


def test_unfinished_runs(hub: Registry) -> None:
    about = {"id": "r1", "verb": "add-task", "name": "news"}
    for name, row in {"r1": about, "r2": {**about, "pid": os.getpid()}, "r3": None}.items():
        (hub.runs_dir / name).mkdir()
        if row is not None:
            (hub.runs_dir / name / "run.json").write_text(json.dumps(row))
    assert [problem.path for problem in hub.verify()] == ["runs/r1"]
    os.utime(hub.runs_dir / "r3", (0, 0))
    assert [(problem.path, problem.problem, problem.fix) for problem in hub.verify()] == [
        (
            "runs/r1",
            "unfinished run of news",
            "cl-adapter add-task news --resume, or delete it: cl-adapter gc --older-than 0",
        ),
        ("runs/r3", "a run without run.json, which cannot be resumed", "cl-adapter gc"),
    ]
    assert [item.path.name for item in hub.garbage()] == ["r3"]
    assert [item.path.name for item in hub.garbage(older_than_days=0)] == ["r1", "r3"]
    hub.collect(hub.garbage(older_than_days=0))
    assert [path.name for path in hub.runs_dir.iterdir()] == ["r2"]


def test_only_what_belongs_to_the_hub_is_collected(hub: Registry, publish: Publish, tmp_path: Path) -> None:
    record = publish()
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (outside, hub.path, hub.adapters_dir, record.path.parent, hub.path / "runs" / "..", Path("/")):
        with pytest.raises(StorageError, match="not removed"):
            hub.collect([Garbage(path, "", 0)])
    assert outside.exists()
    hub.check_files(record)


def test_a_page_that_is_damaged_is_found(hub: Registry) -> None:
    for number in range(40):
        hub.add_event("note", "x", {"filler": hashlib.sha512(str(number).encode()).hexdigest() * 10})
    path = hub.path / "index.db"
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xff" * 4096)
    problems = [problem for problem in hub.verify() if problem.path == "index.db"]
    assert problems
    assert "--rebuild-index" in problems[0].fix


def test_a_torn_line_of_scores_is_left_out(hub: Registry) -> None:
    publish_into(hub)
    hub.add_evaluations("news", [Evaluation("a", "accuracy", 0.1, 1), Evaluation("b", "accuracy", 0.2, 1)])
    path = hub.path / "evaluations.jsonl"
    path.write_text(path.read_text()[:-20])
    hub.rebuild()
    assert [row.evaluation.task for row in hub.evaluations()] == ["a"]


def derive(hub: Registry, *, verb: str = "import", content: bytes = b"of elsewhere", note: str = "") -> str:
    with hub.new_draft("news") as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(content)
        (draft.path / "README.md").write_text(f"made at {note}")
        manifest = {"kind": "imported" if verb == "import" else "pruned", "rank": 8, "note": note}
        edges = [("/somewhere", "imported_from")] if verb == "import" else [("news@v1", "pruned_from")]
        return hub.publish(draft, manifest, edges=edges, task=Task("news", "choice", labels=("a", "b")), verb=verb).ref


@pytest.mark.parametrize("verb", ["import", "prune"])
@pytest.mark.parametrize("point", ["renamed", "rows inserted", "committed"])
def test_a_derivation_that_was_killed_when_its_version_was_there_ends_with_that_one(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, verb: str, point: str
) -> None:
    publish()

    class Killed(BaseException):
        pass

    def killed(reached: str) -> None:
        if reached == point:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "fault", killed)
        patch.setattr(drafts.Draft, "move_back", lambda *_: None)
        with pytest.raises(Killed):
            derive(hub, verb=verb, note="noon")
    opened = Registry.open(hub.path)
    assert derive(opened, verb=verb, note="one o'clock") == "news@v2"
    assert (opened.get("news").ref, opened.serving()) == ("news@v2", {"news": "news@v2"})
    assert [event.verb for event in opened.events()].count(verb) == 1
    assert opened.verify() == []
    assert derive(opened, verb=verb, content=b"other bytes") == "news@v3"
    assert derive(opened, verb=verb) == "news@v4"  # an older one is not taken for it


def test_a_derivation_of_what_was_rolled_back_or_deleted_counts(hub: Registry, publish: Publish) -> None:
    publish()
    assert derive(hub) == "news@v2"
    hub.rollback("news@latest")
    assert derive(hub) == "news@v2"
    assert hub.get("news").ref == "news@v2"
    hub.delete("news@v2")
    assert derive(hub) == "news@v3"
    assert hub.verify() == []


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("what", ["news@production", "production"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_rollback_that_was_stopped_is_only_finished(
    hub: Registry,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    count: int,
) -> None:
    for _ in range(count):
        hub.set_alias(publish().ref, "production")

    def state() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in hub.path.glob("aliases.json*")}

    def fault(point: str) -> None:
        if point == "committed":
            pending.update(state())
            raise Killed

    pending: dict[str, bytes] = {}
    with monkeypatch.context() as patch:
        patch.setattr(drafts, "fault", fault)
        with pytest.raises(Killed):
            hub.rollback(what)
    for name, data in pending.items():
        (hub.path / name).write_bytes(data)
    history, opened = hub.alias_history("news", "production"), Registry.open(hub.path)
    assert opened.rollback(what)[0].ref == f"news@v{count}"
    assert opened.alias_history("news", "production") == history
    assert "had already moved" in caplog.text
    assert opened.verify() == []
    if count == 3:
        assert opened.rollback(what)[1].ref == "news@v1"


def test_another_alias_than_the_stopped_rollbacks_goes_back(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        ref = publish().ref
        hub.set_alias(ref, "production")
        hub.set_alias(ref, "best")

    def fault(point: str) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "fault", fault)
        with pytest.raises(Killed):
            hub.rollback("news@production")
    assert Registry.open(hub.path).rollback("news@best")[1].ref == "news@v2"
    assert hub.aliases()["news"]["production"] == 2
