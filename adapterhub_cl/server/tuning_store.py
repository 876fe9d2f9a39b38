"""Fine-tuning jobs on disk, in the hub's folder `server/jobs`: a JSON file for each job, and its events beside it.

Any number of servers may read and change them; every change is made under a lock, to what is on disk by then.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.erasure.places import JOBS
from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.registry.files import atomic_write_text, storage_errors
from adapterhub_cl.server.failing import Refused
from adapterhub_cl.server.folder_lock import locked

LOG = logging.getLogger("adapterhub_cl.server")
QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"
ENDED = (SUCCEEDED, FAILED, CANCELLED)
MOST_WAITING = 100
_ID = re.compile(r"ftjob-[0-9a-f]{24}")


@dataclass(frozen=True, kw_only=True)
class TuningJob:
    """One fine-tuning job.

    Attributes:
        verb: `add-task` or `update`; `name` is the adapter's.
        model: as the client named it.
        options: of the verb, those that were asked for: `{"epochs": 2}`.
        shown_hyperparameters: as the client is told, defaults filled in.
        cancelling: the client wants it to end.
        pid: of the process that trains; `pid_started` tells it from a later process with the same number.
        run: the folder of its run below `runs/`, once it is known.
        deaths: how often its process ended without saying why.
        created, started, finished: seconds since 1970; 0 if that has not happened.
        error: `{"code", "message", "param"}`.
    """

    id: str
    created: float
    verb: str
    name: str
    model: str
    training_file: str
    validation_file: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    shown_hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    metadata: Mapping[str, str] | None = None
    status: str = QUEUED
    cancelling: bool = False
    pid: int = 0
    pid_started: float = 0.0
    run: str = ""
    deaths: int = 0
    started: float = 0.0
    finished: float = 0.0
    error: Mapping[str, Any] | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None

    def shown(self) -> dict[str, Any]:
        """The job as OpenAI's interface has it."""
        return {
            "id": self.id,
            "object": "fine_tuning.job",
            "created_at": int(self.created),
            "finished_at": int(self.finished) or None,
            "model": self.model,
            "fine_tuned_model": self.fine_tuned_model,
            "organization_id": "adapterhub-cl",
            "status": self.status,
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "hyperparameters": self.shown_hyperparameters,
            "method": {"type": "supervised", "supervised": {"hyperparameters": self.shown_hyperparameters}},
            "seed": self.seed,
            "trained_tokens": self.trained_tokens,
            "error": self.error,
            "result_files": [],
            "estimated_finish": None,
            "integrations": [],
            "metadata": self.metadata,
        }


def new_id() -> str:
    return f"ftjob-{secrets.token_hex(12)}"


class TuningStore:
    """The jobs of a hub.

    Args:
        hub: the hub's folder; nothing is made in it before the first job.
    """

    def __init__(self, hub: Path) -> None:
        self.folder = hub.resolve() / JOBS
        self._ended: dict[str, TuningJob] = {}  # they change no more, so they are read once

    def add(self, job: TuningJob) -> None:
        """Write a new job down.

        Raises:
            Refused: too many are waiting, or another unfinished job makes an adapter of the same name.
        """
        with locked(self.folder):
            waiting = self.unfinished()
            if len(waiting) >= MOST_WAITING:
                raise Refused(429, f"{len(waiting)} jobs are waiting already", "too_many_jobs")
            other = next((one for one in waiting if one.name == job.name and job.verb == "add-task"), None)
            if other is not None:
                said = f"{other.id} makes {job.name!r} already; choose another suffix"
                raise Refused(400, said, "name_taken", "suffix")
            self._save(job)
        self.tell(job.id, f"created: {job.verb} {job.name}, learning from {job.training_file}")

    def get(self, job_id: str) -> TuningJob:
        """The job as it is now.

        Raises:
            Refused: there is none.
            IntegrityError: its file is damaged.
        """
        path = self.folder / f"{job_id}.json"
        if not _ID.fullmatch(job_id) or not path.is_file():
            raise Refused(404, f"there is no fine-tuning job {job_id[:80]!r}", "job_not_found")
        if job_id in self._ended:
            return self._ended[job_id]
        try:
            found = TuningJob(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise IntegrityError(f"{path} is damaged", "delete it; the hub's adapters do not need it") from error
        if found.status in ENDED:
            self._ended[job_id] = found
        return found

    def all(self) -> list[TuningJob]:
        """Every job that can be read, newest first."""
        found = []
        for path in self.folder.glob("ftjob-*.json"):
            try:
                found.append(self.get(path.stem))
            except (Refused, IntegrityError) as error:
                LOG.warning(str(error))
        return sorted(found, key=lambda job: (job.created, job.id), reverse=True)

    def unfinished(self) -> list[TuningJob]:
        """The jobs that wait or run, in the order in which they are taken: one that runs comes first."""
        found = [job for job in reversed(self.all()) if job.status not in ENDED]
        return sorted(found, key=lambda job: job.status != RUNNING)

    def change(self, job_id: str, change: Callable[[TuningJob], TuningJob]) -> TuningJob:
        """Apply a change to the job as it is now; one that has ended is left as it is."""
        with locked(self.folder):
            job = self.get(job_id)
            if job.status in ENDED:
                return job
            changed = change(job)
            if changed != job:
                self._save(changed)
            return changed

    def tell(
        self,
        job_id: str,
        message: str,
        level: str = "info",
        data: Mapping[str, Any] | None = None,
        *,
        read: int = 0,
    ) -> None:
        """Add an event.

        Args:
            data: figures; with them, the event is one of `metrics`.
            read: how far the process's log has been read.
        """
        row = {
            "id": f"ftevent-{secrets.token_hex(12)}",
            "created_at": int(time.time()),
            "level": level,
            "message": message[:2000],
            "object": "fine_tuning.job.event",
            "type": "message" if data is None else "metrics",
            "data": dict(data or {}),
            "read": read,
        }
        with storage_errors(self.folder), self._events(job_id).open("ab") as file:
            file.write((json.dumps(row) + "\n").encode())

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """The events of a known job, newest first."""
        return [{k: v for k, v in row.items() if k != "read"} for row in reversed(self._told(job_id))]

    def log_read(self, job_id: str) -> int:
        """How far the log of a job's process was read, in bytes."""
        return max((int(row.get("read", 0)) for row in self._told(job_id)), default=0)

    def file(self, job_id: str, kind: str) -> Path:
        """Where a job's process writes: its answer (`out`) or its notes (`log`)."""
        return self.folder / f"{job_id}.{kind}"

    def _events(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.events.jsonl"

    def _told(self, job_id: str) -> list[dict[str, Any]]:
        try:
            lines = self._events(job_id).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut off by a crash
            if isinstance(row, dict) and "id" in row:
                found.append(row)
        return found

    def _save(self, job: TuningJob) -> None:
        atomic_write_text(self.folder / f"{job.id}.json", json.dumps(asdict(job), indent=1))
