"""The queue between the threads that ask and the one that answers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.inference.requests import AnswerRequest


class Call:
    """Something for the worker to do between two batches, or between two tokens."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()

    def run(self) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.work())
            except BaseException as error:
                self.future.set_exception(error)


class Queue:
    """What waits to be answered."""

    def __init__(self) -> None:
        self._waiting: deque[AnswerRequest | Call] = deque()
        self._ready = threading.Condition()
        self.closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, items: Sequence[AnswerRequest | Call]) -> None:
        """Add to the queue.

        Raises:
            UsageError: it is closed.
        """
        with self._ready:
            if self.closed:
                raise UsageError("this engine is closed", "open another one: hub.engine()")
            self._waiting.extend(items)
            self._ready.notify_all()

    def take(
        self, most: int, enough: int, wait_s: float, idle: Callable[[], bool]
    ) -> list[AnswerRequest | Call] | None:
        """What waits, once there is something; None when the queue is closed and empty.

        Args:
            enough: so many are not kept waiting for more.
            wait_s: how long fewer are.
            idle: asked every second while nothing comes; True gives an empty list.
        """
        with self._ready:
            while not self._waiting:
                if self.closed:
                    return None
                if not self._ready.wait(timeout=1.0) and idle():
                    return []
            deadline = time.monotonic() + wait_s
            while len(self._waiting) < enough and not self.closed:
                left = deadline - time.monotonic()
                if left <= 0 or not self._ready.wait(timeout=left):
                    break
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def take_now(self, most: int) -> list[AnswerRequest | Call]:
        """What waits now, up to a number; nothing is waited for."""
        with self._ready:
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def close(self, *, abandon: bool) -> bool:
        """Take nothing more; whether it was open.

        Args:
            abandon: cancel what waits.
        """
        with self._ready:
            was_open, self.closed = not self.closed, True
            if abandon:
                for waiting in self._waiting:
                    waiting.future.cancel()
                self._waiting.clear()
            self._ready.notify_all()
        return was_open
