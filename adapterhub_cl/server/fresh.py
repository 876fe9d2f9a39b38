"""Something that takes long to make, made again when it is asked for and old."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
FRESH_S = 5.0  # it is made no more often
COST = 20.0  # and so many times as long as making it took, so that an open page costs at most 5 % of a core


class Fresh(Generic[T]):
    """Safe with several threads.

    Args:
        make: what is raised by it is raised by `get`, and it is called again the next time.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._until, self._found = -1.0, list[T]()

    def get(self) -> T:
        """What was made a few seconds ago at most."""
        with self._lock:
            began = time.monotonic()
            if not self._found or began >= self._until:
                self._found = []
                self._found = [self._make()]
                self._until = began + max(FRESH_S, COST * (time.monotonic() - began))
            return self._found[0]

    def forget(self) -> None:
        """Make it again the next time."""
        with self._lock:
            self._until = -1.0
