"""Carries out fine-tuning jobs, one after another, each as `add-task` or `update` in a process of its own."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from filelock import FileLock, Timeout

from adapterhub_cl.errors import AdapterHubError, GateRefused
from adapterhub_cl.learning.order import refusal
from adapterhub_cl.options import flag
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.server.failing import Refused
from adapterhub_cl.server.training_process import LOOK_S, TrainingProcess
from adapterhub_cl.server.tuning_store import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, TuningJob, TuningStore
from adapterhub_cl.server.tuning_words import answer_in, error_of, event_of, tokens_of, verdict_of
from adapterhub_cl.server.uploads import Uploads
from adapterhub_cl.training.runs import Run, published_by
from adapterhub_cl.types import AdapterRecord

LOG = logging.getLogger("adapterhub_cl.server")
MOST_DEATHS = 3  # a process that was killed goes on from its checkpoint so many times
GRACE_S = 10.0  # a process gets so long to write its checkpoint
CANCEL_GRACE_S = 3.0  # one that is cancelled needs none
RESUMED = "hint: continue with:"  # what the server does by itself
IDLE_S = 0.5


def training_command(registry: Registry, device: str = "auto", dtype: str = "auto") -> list[str]:
    """The command line of this program on a hub, up to the verb.

    Args:
        device, dtype: as the global flags take them.
    """
    command = [sys.executable, "-m", "cl_adapter", "--hub", str(registry.path.resolve()), "--json"]
    flags = {"--device": device, "--dtype": dtype, "--base-path": registry.base_path}
    return command + [word for name, value in flags.items() if value not in ("", "auto") for word in (name, value)]


class TuningRunner:
    """A thread that takes the jobs of a hub. Of several servers on one hub, one runs them.

    Args:
        command: the command line up to the verb, with `--json`.
    """

    def __init__(self, registry: Registry, store: TuningStore, uploads: Uploads, command: Sequence[str]) -> None:
        self.registry, self.store, self.uploads, self.command = registry, store, uploads, list(command)
        self._wake, self._stopping = threading.Event(), False
        self._read: dict[str, int] = {}  # job → how far its process's log was read, in bytes
        self._thread = threading.Thread(target=self._loop, name="fine-tuning", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the running process so that its job can be continued, and wait for that."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def _loop(self) -> None:
        lock: FileLock | None = None
        while not self._stopping:
            try:
                lock = lock or self._claimed()
                job = self._next() if lock is not None else None
                if job is not None:
                    self._carry_out(job)
                    continue
            except Exception:  # one job, or the disk: the thread must go on
                LOG.exception("fine-tuning")
            self._wake.wait(IDLE_S)
            self._wake.clear()
        if lock is not None:
            lock.release()

    def _claimed(self) -> FileLock | None:
        """The right to run this hub's jobs; None while another server has it, or while there are none."""
        if not self.store.folder.is_dir():
            return None
        lock = FileLock(self.store.folder / ".runner", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock

    def _next(self) -> TuningJob | None:
        return next(iter(self.store.unfinished()), None)

    def _carry_out(self, job: TuningJob) -> None:
        """From where the job stands to where it ends, or until this server is stopped."""
        try:
            process = None
            if job.status == RUNNING:
                process = TrainingProcess.found(job.pid, job.pid_started, str(self.uploads.path(job.training_file)))
            elif not job.cancelling:
                process = self._start(job)
            if process is not None:
                self._watch(job.id, process)
            self._conclude(job.id)
        except (AdapterHubError, Refused, OSError) as error:
            LOG.exception("fine-tuning job %s", job.id)
            self._fail(job.id, {"code": "internal_error", "message": _plain(error), "param": None})

    def _start(self, job: TuningJob) -> TrainingProcess | None:
        """The process of a job that waits; None if the job was cancelled meanwhile."""
        # The file's path is how a later server knows the process, if this one is killed before it has its number.
        run, words = self._run_of(job), [job.verb, job.name, str(self.uploads.path(job.training_file))]
        if run is not None:
            words.append("--resume")
        else:
            if job.validation_file:
                words += ["--eval", str(self.uploads.path(job.validation_file))]
            for name, value in job.options.items():
                words += [flag(name), str(value)]
        begun: dict[str, Any] = {"status": RUNNING, "started": time.time(), "pid": 0, "run": run.id if run else ""}
        job = self.store.change(job.id, lambda now: now if now.cancelling else replace(now, **begun))
        if job.status != RUNNING:
            return None
        self.store.tell(job.id, f"continuing run {run.id}" if run else "training started")
        out, log = self.store.file(job.id, "out"), self.store.file(job.id, "log")
        process = TrainingProcess.start([*self.command, *words], out, log)
        self.store.change(job.id, lambda now: replace(now, pid=process.pid, pid_started=process.created))
        return process

    def _watch(self, job_id: str, process: TrainingProcess) -> None:
        """Pass on what the process tells, until it ends."""
        while True:
            ended = process.ended()
            self._pass_on(job_id, last=ended)
            if ended:
                return
            job = self.store.get(job_id)
            if not job.run and (run := self._run_of(job)) is not None:
                self.store.change(job_id, lambda now, run=run: replace(now, run=run.id))  # type: ignore[misc]
            if job.cancelling or self._stopping:
                process.end(CANCEL_GRACE_S if job.cancelling else GRACE_S)
            else:
                time.sleep(LOOK_S)

    def _pass_on(self, job_id: str, *, last: bool) -> None:
        log = self.store.file(job_id, "log")
        if not log.is_file():
            return
        if job_id not in self._read:
            self._read = {job_id: self.store.log_read(job_id)}
        read = self._read[job_id]
        if log.stat().st_size <= read:
            return
        with log.open("rb") as file:
            file.seek(read)
            text = file.read()
        whole = text if last else text[: text.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            read += len(line)
            self._read[job_id] = read
            told = self._shown(line.decode(errors="replace").strip())
            if told and not told.startswith(RESUMED):
                message, level, figures = event_of(told)
                self.store.tell(job_id, message, level, figures, read=read)

    def _conclude(self, job_id: str) -> None:
        """Write down what became of the job, now that its process has ended."""
        job = self.store.get(job_id)
        self._pass_on(job_id, last=True)
        answer = answer_in(self.store.file(job_id, "out")) if job.started else None
        if answer is not None and answer.get("code") != "interrupted":
            if "error" in answer:
                self._fail(job_id, error_of(answer), answer.get("gate"))
            else:
                self._succeed(job_id, str(answer["ref"]))
            return
        run = self._run_of(job)
        made = self._made_by(run.id if run else job.run)
        if made is not None and made.status == "rejected":
            refused: GateRefused = refusal(made, str(made.manifest.get("strategy", "")))
            told = {"error": refused.message, "hint": refused.hint, "code": refused.code}
            self._fail(job_id, error_of(told), refused.gate)
        elif made is not None:
            self._succeed(job_id, made.ref)
        elif job.cancelling:
            if run is not None:
                run.remove()
            self._end(job_id, CANCELLED, "cancelled; nothing was published")
        elif self._stopping:
            self.store.change(job_id, lambda now: replace(now, status=QUEUED, pid=0))
            self.store.tell(job_id, "the server is shutting down; the job goes on when it starts again", "warn")
        elif job.deaths + 1 >= MOST_DEATHS:
            message = f"the process that trains ended {MOST_DEATHS} times without an answer; it was killed, or crashed"
            self._fail(job_id, {"code": "killed", "message": message, "param": None})
        else:
            self.store.change(job_id, lambda now: replace(now, status=QUEUED, pid=0, deaths=now.deaths + 1))
            self.store.tell(job_id, "the process that trains was killed; the job goes on from its checkpoint", "warn")

    def _succeed(self, job_id: str, ref: str) -> None:
        record = self.registry.get(ref)
        gate: Mapping[str, Any] = record.manifest.get("gate") or {}
        self.store.tell(job_id, verdict_of(gate), data={"gate": gate})
        scores = ", ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
        more: dict[str, Any] = {"fine_tuned_model": ref, "trained_tokens": tokens_of(record)}
        self._end(job_id, SUCCEEDED, f"{ref} is ready{f': {scores}' if scores else ''}", **more)

    def _fail(self, job_id: str, error: Mapping[str, Any], gate: Mapping[str, Any] | None = None) -> None:
        if gate:
            self.store.tell(job_id, verdict_of(gate), "error", {"gate": gate})
        error = {**error, "message": self._shown(str(error["message"]))}
        self._end(job_id, FAILED, str(error["message"]), "error", error=error)

    def _end(self, job_id: str, status: str, message: str, level: str = "info", **more: Any) -> None:
        self.store.tell(job_id, message, level)
        self.store.change(job_id, lambda now: replace(now, status=status, finished=time.time(), pid=0, **more))
        for kind in ("out", "log"):
            self.store.file(job_id, kind).unlink(missing_ok=True)

    def _run_of(self, job: TuningJob) -> Run | None:
        """The unfinished run of a job: the one that it is known to have, or the newest that learns from its file."""
        if not job.started:
            return None
        data = str(self.uploads.path(job.training_file))
        for run in Run.unfinished(self.registry.runs_dir, job.verb, job.name):
            by_file = run.request.get("data") == data and _since(run) >= job.started - 1
            if run.id == job.run or (not job.run and by_file):
                return run
        return None

    def _made_by(self, run_id: str) -> AdapterRecord | None:
        """The version that a run has published."""
        if not run_id:
            return None
        return published_by(self.registry, Run(self.registry.runs_dir / run_id, {}), Reporter())

    def _shown(self, text: str) -> str:
        """A text without the hub's folders."""
        hub = str(self.registry.path.resolve())
        return text.replace(f"{self.uploads.folder}/", "").replace(f"{hub}/", "").replace(hub, "HUB")


def _since(run: Run) -> float:
    """When a run was started, in seconds since 1970."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(str(run.request.get("created_at"))).timestamp()
    except ValueError:
        return 0.0


def _plain(error: Exception) -> str:
    return "; ".join(part for part in (str(error), getattr(error, "hint", "")) if part)
