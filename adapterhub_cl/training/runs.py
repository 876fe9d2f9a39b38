"""Run folders: the request of an unfinished training run and its checkpoints. No torch."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adapterhub_cl.errors import IntegrityError, StorageError, TrainingError, TrainingInterrupted, UsageError
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry, seals, storage_errors
from adapterhub_cl.registry.files import atomic_write_text
from adapterhub_cl.types import AdapterRecord

FILE = "run.json"
CHECKPOINT = "checkpoint.safetensors"  # see `adapterhub_cl.training.checkpoints`
_FOLDER = r"-\d{8}-\d{6}-[0-9a-f]{6}"  # what follows the name in a run folder's


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        path: `<hub>/runs/<id>`.
        request: verb, name, data with its SHA-256, and every setting; JSON.
    """

    path: Path
    request: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.path.name

    @classmethod
    def start(cls, runs: Path, request: Mapping[str, Any]) -> Run:
        """A new run folder.

        Raises:
            StorageError: the disk refused; no folder is left.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = runs / f"{request['name']}-{stamp}-{secrets.token_hex(3)}"
        with storage_errors(path):
            path.mkdir(parents=True)
            run = cls(path, request)
            try:
                run.claim()
            except BaseException:
                run.remove()
                raise
        return run

    def claim(self) -> None:
        """Write down that this process runs it, so that `gc` and `verify` leave it alone.

        Raises:
            StorageError: the disk refused.
        """
        row = {**self.request, "id": self.id, "pid": os.getpid(), "host": socket.gethostname()}
        with storage_errors(self.path):
            atomic_write_text(self.path / FILE, json.dumps({**row, seals.KEY: seals.of_json(row)}, indent=1))

    @classmethod
    def unfinished(cls, runs: Path, verb: str, name: str) -> list[Run]:
        """The unfinished runs of this verb and name, newest first."""
        found = []
        for file in runs.glob(f"*/{FILE}"):
            try:
                request = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                continue  # verify reports it
            if isinstance(request, dict) and (request.get("verb"), request.get("name")) == (verb, name):
                found.append(cls(file.parent, request))
        return sorted(found, key=lambda run: str(run.request.get("created_at", "")), reverse=True)

    @classmethod
    def newest(cls, runs: Path, verb: str, name: str) -> Run:
        """The run that `--resume` continues.

        Raises:
            UsageError: there is none.
            IntegrityError: what it was asked to do is not what was written down.
        """
        found = cls.unfinished(runs, verb, name)
        for file in _damaged(runs, name) if not found else ():
            raise IntegrityError(
                f"{file} is damaged, so it cannot be told what that run of {name!r} was asked to do",
                f"delete {file.parent} and start the run again without --resume",
            )
        if not found:
            raise UsageError(f"no unfinished {verb} of {name!r} to resume", "start it without --resume")
        newest = found[0]
        if seals.is_broken_json(newest.request):
            raise IntegrityError(
                f"{newest.path / FILE} is not what was written, its SHA-256 is another",
                f"delete {newest.path} and start the run again without --resume",
            )
        return newest

    def lock(self) -> FileLock:
        """Held while the run is going on.

        Raises:
            TrainingError: another process is running it.
        """
        taken = f"run {self.id} is going on in another process"
        return acquire(self.path / ".lock", taken, "wait for it, or start a new one without --resume")

    def drop(self) -> None:
        """Give up what it has learned.

        Raises:
            TrainingError: another process is running it.
        """
        with held(self.lock()):
            self.remove()

    def remove(self) -> None:
        """The version is published: nothing of the run is needed any more."""
        shutil.rmtree(self.path, ignore_errors=True)


def _damaged(runs: Path, name: str) -> list[Path]:
    """The `run.json` that say nothing any more, in folders that are called as runs of this name; newest first."""
    found = []
    for folder in runs.glob(f"{name}-*"):
        file = folder / FILE
        if not folder.is_dir() or folder.is_symlink() or not re.fullmatch(_FOLDER, folder.name.removeprefix(name)):
            continue
        try:
            request = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:  # a run that is being set up has nothing else either
            request = {"verb": "", "name": name} if all(path.name[0] == "." for path in folder.iterdir()) else None
        except (OSError, ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("verb"), str) or request.get("name") != name:
            found.append(file)
    return sorted(found, reverse=True)


def acquire(path: Path, taken: str, hint: str, seconds: float = 0.0) -> FileLock:
    """A lock file, held from now on.

    Args:
        seconds: to wait for another process.

    Raises:
        TrainingError: another process holds it; the message is `taken`.
    """
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise TrainingError(taken, hint) from error
    return lock


@contextmanager
def held(lock: FileLock) -> Iterator[None]:
    """Releases an acquired lock at the end of the block. (A `with` on the lock itself would acquire it once more.)"""
    try:
        yield
    finally:
        lock.release()


def published_by(registry: Registry, run: Run, reporter: Reporter) -> AdapterRecord | None:
    """The version that a run had published just before it was killed; the run is removed. None where there is none."""
    for line in registry.repair():  # a version that was renamed into place but not yet in the index is adopted
        reporter.note(f"note: {line}")
    for record in registry.adapters(all_versions=True):
        made_by = record.training.get("run") or (record.manifest.get("recipe") or {}).get("run")
        if made_by == run.id:
            reporter.note(f"run {run.id} was already finished as {record.ref}")
            run.remove()
            return record
    return None


def leave(run: Run, error: BaseException, resume: str, kept: str) -> None:
    """Remove a run that left nothing to continue from; for any other run, say how to resume it.

    Args:
        error: what ended the run.
        resume: the command that resumes it.
        kept: what there is to continue from; empty if there is nothing.

    Raises:
        TrainingInterrupted: in place of a KeyboardInterrupt, where the run can be resumed.
    """
    if not kept:
        run.remove()
        if isinstance(error, StorageError):
            error.hint = "free some space, then start again"
    elif isinstance(error, TrainingInterrupted):
        error.hint = f"continue with: {resume}"
    elif isinstance(error, KeyboardInterrupt):
        raise TrainingInterrupted(f"stopped; {kept} was kept", f"continue with: {resume}") from error
