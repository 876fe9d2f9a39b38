"""Writes the answers of a running server into its hub's journal, in a thread of its own, so that no answer waits."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace

from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.traffic.conversations import place_of
from adapterhub_cl.traffic.journal import Journal, KeptAnswer
from adapterhub_cl.traffic.masking import masked, masked_json
from adapterhub_cl.types import Example

LOG = logging.getLogger("adapterhub_cl.traffic")
EVERY_S = 0.5  # what came in since is written together
MOST = 20_000  # rows that wait for a disk that does not take them; the oldest go
EXPIRES_S = 3600.0  # how often rows that are too old are dropped


class Keeper:
    """Keeps a share of the answers, and drops them when they are old enough.

    Args:
        share: of the conversations, 0 to 1: a conversation is kept as a whole or not at all.
        days: after which an answer is dropped.
        tasks: the tasks that the hub has now: what waited while its task was forgotten is not kept.

    Attributes:
        lost: how many rows a full disk has cost.
    """

    def __init__(self, journal: Journal, share: float, days: float, tasks: Callable[[], Collection[str]]) -> None:
        self.journal, self.share, self.days, self.tasks, self.lost = journal, share, days, tasks, 0
        self._rows: deque[KeptAnswer] = deque()
        self._ready, self._writes, self._ended = threading.Condition(), threading.Lock(), False
        self._expired_at, self._told = float("-inf"), ""
        self._thread = threading.Thread(target=self._run, name="traffic-keeper", daemon=True)
        self._thread.start()

    def keep(self, row: KeptAnswer) -> bool:
        """Take an answer, unless its conversation is not among those kept; whether it was taken."""
        if place_of(row.conversation or row.id) >= self.share:
            return False
        with self._ready:
            if len(self._rows) >= MOST:
                self._rows.popleft()
                self.lost += 1
            self._rows.append(row)
            self._ready.notify()
        return True

    def flush(self) -> None:
        """Write what waits, and return when that is done.

        Raises:
            StorageError: the disk refuses; the rows wait for the next time.
        """
        with self._writes:
            rows = list(self._rows)
            known = self.tasks() if rows else ()
            self.journal.keep([_masked(row) for row in rows if not row.task or row.task in known])
            with self._ready:
                for row in rows:
                    if self._rows and self._rows[0] is row:
                        self._rows.popleft()

    def close(self) -> None:
        """Write what waits, and end."""
        with self._ready:
            self._ended = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            with self._ready:
                self._ready.wait_for(lambda: self._rows or self._ended, timeout=EXPIRES_S)
                ended = self._ended
            if not ended:
                time.sleep(EVERY_S)
            try:
                self.flush()
                self._told = ""
                if time.monotonic() - self._expired_at >= EXPIRES_S:
                    self._expired_at = time.monotonic()
                    self.journal.expire(self.days)
            except AdapterHubError as error:
                if error.message != self._told:  # once, and not every second
                    LOG.warning("answers wait to be kept: %s", error.message)
                self._told = error.message
                time.sleep(0 if ended else EVERY_S)
            except Exception:
                LOG.exception("answers could not be kept")


def _masked(row: KeptAnswer) -> KeptAnswer:
    example = Example.from_json(masked_json(row.example.to_json()))
    return replace(row, example=example, answer=masked(row.answer))
