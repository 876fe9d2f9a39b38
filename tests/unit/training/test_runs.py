"""Run folders: which run `--resume` continues, and that nobody else is running it."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub_cl.errors import IntegrityError, StorageError, TrainingError, UsageError
from adapterhub_cl.registry import seals
from adapterhub_cl.training import runs
from adapterhub_cl.training.runs import FILE, Run


def start(runs: Path, name: str = "news", verb: str = "add-task", at: str = "2026-01-01") -> Run:
    return Run.start(runs, {"verb": verb, "name": name, "created_at": at, "settings": {"epochs": 3}})


def test_the_newest_of_this_verb_and_name(tmp_path: Path) -> None:
    old, new, middle = (start(tmp_path, at=f"2026-01-0{day}") for day in (1, 3, 2))
    start(tmp_path, name="other", at="2026-02-01")
    start(tmp_path, verb="update", at="2026-02-02")
    assert [run.id for run in Run.unfinished(tmp_path, "add-task", "news")] == [new.id, middle.id, old.id]
    found = Run.newest(tmp_path, "add-task", "news")
    assert found.path == new.path
    assert found.request["settings"] == {"epochs": 3}
    assert found.id.startswith("news-")


def test_many_runs_started_at_once_have_their_own_folders(tmp_path: Path) -> None:
    assert len({start(tmp_path).path for _ in range(20)}) == 20


def test_nothing_to_resume(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="no unfinished add-task of 'news' to resume") as caught:
            Run.newest(folder, "add-task", "news")
        assert "without --resume" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b'"x"', b"{}"])
def test_a_spoilt_run_is_skipped(tmp_path: Path, content: bytes) -> None:
    good, bad = start(tmp_path, at="2026-01-01"), start(tmp_path, at="2026-01-02")
    (bad.path / FILE).write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "stray.txt").write_text("")
    assert Run.newest(tmp_path, "add-task", "news").id == good.id


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b"{}", b"[" * 100_000, None])
def test_a_damaged_run_is_not_called_missing(tmp_path: Path, content: bytes | None) -> None:
    bad = start(tmp_path)
    start(tmp_path, name="news-flash", verb="update")
    if content is None:
        (bad.path / FILE).rename(bad.path / "checkpoint.safetensors")
    else:
        (bad.path / FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match="is damaged") as caught:
        Run.newest(tmp_path, "add-task", "news")
    assert str(bad.path) in caught.value.hint
    with pytest.raises(UsageError, match="no unfinished add-task"):
        Run.newest(tmp_path, "add-task", "flash")


def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "atomic_write_text", full)
    with pytest.raises(StorageError, match="no space left"):
        start(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_leaves_nothing(tmp_path: Path) -> None:
    run = start(tmp_path)
    with run.lock():
        (run.path / "checkpoint.safetensors").write_bytes(b"x")
    run.remove()
    run.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_request_is_written_whole(tmp_path: Path) -> None:
    run = start(tmp_path)
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    found = json.loads((run.path / FILE).read_text())
    assert not seals.is_broken_json(found)
    assert found.pop("seal")
    assert found == {"id": run.id, **run.request, **owner}


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    run = start(tmp_path)
    code = (
        "import sys; from pathlib import Path; from adapterhub_cl.training.runs import Run\n"
        "run = Run.newest(Path(sys.argv[1]), 'add-task', 'news')\n"
        "with run.lock(): print('locked', flush=True); sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(TrainingError, match=f"run {run.id} is going on in another process"):
            run.lock()
        other.communicate("\n", timeout=30)
    with run.lock() as held:
        assert held.is_locked
