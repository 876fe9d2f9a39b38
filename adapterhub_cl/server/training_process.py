"""The process that trains for a fine-tuning job. It outlives a server that is killed, and the next server finds it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

LOOK_S = 0.1


class TrainingProcess:
    """A process in a group of its own, so that a Ctrl-C that is meant for the server does not reach it.

    Attributes:
        pid: of the process and of its group.
        created: when it started, in seconds since 1970; a later process with the same number has another value.
    """

    def __init__(self, process: psutil.Process, own: subprocess.Popen[bytes] | None = None) -> None:
        self._process, self._own = process, own
        self.pid, self.created = process.pid, process.create_time()

    @classmethod
    def start(cls, command: Sequence[str], out: Path, log: Path) -> TrainingProcess:
        """Start a command.

        Args:
            out: takes its standard output, from the beginning; `log` gets its standard error at the end.

        Raises:
            OSError: it cannot be started.
        """
        with out.open("wb") as told, log.open("ab") as noted:
            own = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=told, stderr=noted, start_new_session=True)
        return cls(psutil.Process(own.pid), own)

    @classmethod
    def found(cls, pid: int, created: float, word: str) -> TrainingProcess | None:
        """The process that an earlier server has started, if it still runs.

        Args:
            pid: 0 if that server was killed before it wrote the number down.
            word: a word of its command line that no other process has.
        """
        if not pid:
            candidates = [p for p in psutil.process_iter(["cmdline"]) if word in " ".join(p.info["cmdline"] or ())]
        else:
            candidates = []
            with suppress(psutil.Error):
                candidates = [psutil.Process(pid)]
        for process in candidates:
            with suppress(psutil.Error):
                mine = not pid or abs(process.create_time() - created) < 1.0
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    return cls(process)
        return None

    def ended(self) -> bool:
        """Whether it has ended."""
        if self._own is not None:
            return self._own.poll() is not None
        try:
            return not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def end(self, grace: float) -> None:
        """Ask it to stop, and kill it and its children if it has not done so within `grace` seconds."""
        self._send(signal.SIGTERM)
        until = time.monotonic() + grace
        while not self.ended() and time.monotonic() < until:
            time.sleep(LOOK_S)
        self._send(signal.SIGKILL)  # also children that outlived it
        while not self.ended():
            time.sleep(LOOK_S)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
