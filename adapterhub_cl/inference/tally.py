"""Counts requests by version and task, and writes the counts to the index now and then."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.usage import Counted

EVERY_S, EVERY = 5.0, 1000


@dataclass
class _Count:
    requests: int = 0
    routed: int = 0
    fallbacks: int = 0
    confidence: float = 0.0


class Tally:
    """Counters that must never make a request fail: what cannot be written now is written later, or never."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._counts: dict[tuple[str, str], _Count] = {}
        self._lock = threading.Lock()
        self._since, self._waiting = time.monotonic(), 0
        self.problem = ""

    def add(self, ref: str, task: str, *, routed: bool, fallback: bool, confidence: float, requests: int = 1) -> None:
        """Answered requests, one unless said otherwise.

        Args:
            routed: the router chose the version; not of fallbacks.
            confidence: the router's, for routed requests and fallbacks.
        """
        with self._lock:
            count = self._counts.setdefault((ref, task), _Count())
            count.requests += requests
            count.routed += routed
            count.fallbacks += fallback
            count.confidence += confidence if routed or fallback else 0.0
            self._waiting += requests

    @property
    def due(self) -> bool:
        """Whether there is something to be written by now; what could not be written is tried again after a while."""
        many = self._waiting >= EVERY and not self.problem
        return self._waiting > 0 and (many or time.monotonic() - self._since >= EVERY_S)

    def flush(self) -> None:
        """Write what was counted; on a failure it is kept."""
        with self._lock:
            counts, self._counts, self._waiting = self._counts, {}, 0
            self._since = time.monotonic()
        if not counts:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self.registry.count_requests(
                Counted(ref, task, c.requests, c.routed, c.fallbacks, c.confidence, at)
                for (ref, task), c in counts.items()
            )
            self.problem = ""
        except Exception as error:
            self.problem = str(error)
            with self._lock:
                for key, more in counts.items():
                    count = self._counts.setdefault(key, _Count())
                    count.requests += more.requests
                    count.routed += more.routed
                    count.fallbacks += more.fallbacks
                    count.confidence += more.confidence
                    self._waiting += more.requests
