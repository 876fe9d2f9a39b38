"""The thread that carries out fine-tuning jobs, without a server: restarts, kills, two servers, damaged files."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from server_support import REFERENCE

from adapterhub_cl.erasure.places import trained_over_http
from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.registry import Registry
from adapterhub_cl.server.failing import Refused
from adapterhub_cl.server.training_process import TrainingProcess
from adapterhub_cl.server.tuning_runner import TuningRunner, training_command
from adapterhub_cl.server.tuning_store import MOST_WAITING, RUNNING, TuningJob, TuningStore, new_id
from adapterhub_cl.server.uploads import Uploads

STUB = Path(__file__).with_name("stub_training.py")
ENDED = ("succeeded", "failed", "cancelled")


class Bench:
    """A hub with its files and jobs, and as many runners as a test starts."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry.open(shutil.copytree(REFERENCE, folder / "hub"))
        self.hub, self.starts = self.registry.path, folder / "starts.txt"
        self.uploads, self.store = Uploads(self.hub, 10**6), TuningStore(self.hub)
        self.command = [sys.executable, str(STUB), "--hub", str(self.hub), "--json"]
        self.runners: list[TuningRunner] = []

    def runner(self) -> TuningRunner:
        found = TuningRunner(self.registry, TuningStore(self.hub), self.uploads, self.command)
        found.start()
        self.runners.append(found)
        return found

    def job(self, name: str, **more: object) -> TuningJob:
        file = self.uploads.add(io.BytesIO(b"{}\n"), "rows.jsonl").id
        job = TuningJob(id=new_id(), created=time.time(), verb="add-task", name=name, model="base", training_file=file)
        self.store.add(replace(job, **more))  # type: ignore[arg-type]
        return job

    def until(self, job: TuningJob, wanted: Callable[[TuningJob], bool]) -> TuningJob:
        end = time.monotonic() + 20
        while not wanted(now := self.store.get(job.id)):
            assert time.monotonic() < end, now
            time.sleep(0.02)
        return now

    def ended(self, job: TuningJob) -> TuningJob:
        return self.until(job, lambda now: now.status in ENDED)

    def told(self, job: TuningJob) -> list[str]:
        return [row["message"] for row in reversed(self.store.events(job.id))]

    def started(self) -> list[str]:
        return [line.split()[1] for line in self.starts.read_text().splitlines()]

    def running(self, job: TuningJob) -> TuningJob:
        """The job once its run is known."""
        return self.until(job, lambda now: bool(now.run and now.pid))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    for runner in found.runners:
        runner.stop()


def test_a_stopped_server_leaves_a_job_that_goes_on(bench: Bench) -> None:
    first = bench.runner()
    job, waits = bench.job("long-1"), bench.job("quick-1")
    run = bench.running(job).run
    first.stop()
    assert [bench.store.get(one.id).status for one in (job, waits)] == ["queued", "queued"]
    assert (bench.hub / "runs" / run).is_dir()
    bench.runner()
    assert [bench.ended(one).fine_tuned_model for one in (job, waits)] == ["tickets@v1"] * 2
    assert any("the server is shutting down" in line for line in bench.told(job))
    assert f"continuing run {run}" in bench.told(job)
    assert not any("hint" in line or str(bench.hub) in line for line in bench.told(job))
    assert bench.started() == ["long-1", "long-1", "quick-1"]
    assert "--resume" in bench.starts.read_text().splitlines()[1]


@pytest.mark.parametrize("pid_known", [True, False], ids=["pid known", "pid not written yet"])
def test_a_process_that_outlived_its_server_is_found(bench: Bench, pid_known: bool) -> None:
    job = bench.job("slow-1")
    words = [*bench.command, "add-task", "slow-1", str(bench.uploads.path(job.training_file))]
    process = TrainingProcess.start(words, bench.store.file(job.id, "out"), bench.store.file(job.id, "log"))
    facts = {"pid": process.pid, "pid_started": process.created} if pid_known else {}
    bench.store.change(job.id, lambda now: replace(now, status=RUNNING, started=time.time(), **facts))  # type: ignore[arg-type]
    bench.runner()
    until = time.monotonic() + 20
    while not process.ended() and time.monotonic() < until:  # the parent, which is this test, must reap it
        time.sleep(0.02)
    assert bench.ended(job).fine_tuned_model == "tickets@v1"
    assert bench.started() == ["slow-1"]
    assert any(line.startswith("epoch 1 of 2") for line in bench.told(job))


def test_a_process_that_ended_while_no_server_ran(bench: Bench) -> None:
    job = bench.job("quick-1")
    bench.store.file(job.id, "out").write_text('{"ref": "tickets@v1"}')
    bench.store.file(job.id, "log").write_text("epoch 1 of 1  loss 0.1000\n")
    bench.store.change(job.id, lambda now: replace(now, status=RUNNING, started=time.time(), pid=2**22 - 1))
    bench.runner()
    assert bench.ended(job).status == "succeeded"
    assert "epoch 1 of 1  loss 0.1000" in bench.told(job)
    assert not bench.starts.exists()


def test_a_version_that_was_published_before_the_kill(bench: Bench) -> None:
    run = str(bench.registry.get("tickets@v1").training["run"])
    job = bench.job("tickets-2")
    bench.store.change(job.id, lambda now: replace(now, status=RUNNING, started=time.time(), run=run))
    bench.runner()
    assert bench.ended(job).fine_tuned_model == "tickets@v1"
    assert not bench.starts.exists(), "nothing was trained again"


def test_a_killed_process_goes_on_from_its_run(bench: Bench) -> None:
    bench.runner()
    job = bench.ended(bench.job("once-1"))
    assert (job.status, job.deaths) == ("succeeded", 1)
    path = bench.uploads.path(job.training_file)  # by which a later server would find the process
    assert bench.starts.read_text().splitlines()[1] == f"add-task once-1 {path} --resume"


def test_a_process_that_dies_each_time_fails_its_job(bench: Bench) -> None:
    bench.runner()
    job = bench.ended(bench.job("crash-1"))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "killed"
    assert bench.started() == ["crash-1"] * 3
    assert bench.ended(bench.job("quick-1")).status == "succeeded", "the next job is not held up"


def test_a_process_that_does_not_stop_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub_cl.server.tuning_runner.CANCEL_GRACE_S", 0.3)
    bench.runner()
    job = bench.job("deaf-1")
    pid = bench.running(job).pid
    bench.store.change(job.id, lambda now: replace(now, cancelling=True))
    assert bench.ended(job).status == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not list((bench.hub / "runs").glob("deaf-1-*"))


def test_someone_else_stops_the_process(bench: Bench) -> None:
    bench.runner()
    job = bench.job("long-1")
    os.kill(bench.running(job).pid, signal.SIGTERM)
    assert bench.ended(job).status == "succeeded"
    assert bench.started() == ["long-1", "long-1"]


def test_of_two_servers_one_runs_the_jobs(bench: Bench) -> None:
    jobs = [bench.job(f"quick-{k}") for k in range(3)]
    first, _ = bench.runner(), bench.runner()
    assert {bench.ended(job).status for job in jobs} == {"succeeded"}
    assert bench.started() == ["quick-0", "quick-1", "quick-2"]
    first.stop()
    assert bench.ended(bench.job("quick-3")).status == "succeeded"


def test_a_command_that_cannot_start(bench: Bench) -> None:
    bench.command = [str(bench.hub / "nothing")]
    bench.runner()
    job = bench.ended(bench.job("quick-1"))
    assert job.status == "failed"
    assert str(bench.hub) not in str(job.error)


def test_damaged_files_hide_nothing_else(bench: Bench) -> None:
    good, bad = bench.job("quick-1"), bench.job("quick-2")
    (bench.store.folder / f"{bad.id}.json").write_text("{")
    with bench.store._events(good.id).open("a") as file:
        file.write('{"id": "cut')
    fresh = TuningStore(bench.hub)
    assert [job.id for job in fresh.all()] == [good.id]
    with pytest.raises(IntegrityError, match="damaged"):
        fresh.get(bad.id)
    assert len(fresh.events(good.id)) == 1
    (bench.uploads.folder / f"{good.training_file}.json").write_text("[]")
    assert [one.id for one in bench.uploads.all()] == [bad.training_file]
    bench.runner()
    assert bench.ended(good).status == "succeeded"


def test_not_too_many_wait(bench: Bench) -> None:
    for k in range(MOST_WAITING):
        bench.job(f"quick-{k}")
    with pytest.raises(Refused, match="waiting"):
        bench.job("quick-x")


def test_leftovers_of_a_killed_upload_are_removed(bench: Bench) -> None:
    first = bench.uploads.add(io.BytesIO(b"{}"), "a")
    left = bench.uploads.folder / ".tmp-4194303-0011aabb"
    left.write_bytes(b"half")
    assert bench.uploads.all() == [first]
    bench.uploads.add(io.BytesIO(b"{}"), "b")
    assert not left.exists()


def test_what_belongs_to_a_forgotten_task(bench: Bench) -> None:
    bench.runner()
    gone, stays = bench.ended(bench.job("quick-1")), bench.ended(bench.job("quick-2"))
    found = {path.name for path in trained_over_http(bench.hub, {"quick-1"})}
    assert found == {
        *(f"{gone.id}.json", f"{gone.id}.events.jsonl"),
        *(f"{gone.training_file}.json", f"{gone.training_file}.jsonl"),
    }
    for path in trained_over_http(bench.hub, {"quick-1"}):
        path.unlink()
    assert [job.id for job in bench.store.all()] == [stays.id]
    assert [one.id for one in bench.uploads.all()] == [stays.training_file]


def test_the_command_names_hub_device_and_base(bench: Bench) -> None:
    assert training_command(bench.registry)[1:] == ["-m", "cl_adapter", "--hub", str(bench.hub.resolve()), "--json"]
    bench.registry.base_path = "/elsewhere"
    assert training_command(bench.registry, "cpu", "fp32")[-6:] == [
        *("--device", "cpu", "--dtype", "fp32"),
        *("--base-path", "/elsewhere"),
    ]


def test_a_job_file_of_an_older_version_is_read(bench: Bench) -> None:
    job = bench.job("quick-1")
    path = bench.store.folder / f"{job.id}.json"
    row = json.loads(path.read_text())
    for key in ("metadata", "deaths", "pid_started"):
        del row[key]
    path.write_text(json.dumps(row))
    assert TuningStore(bench.hub).get(job.id).deaths == 0
