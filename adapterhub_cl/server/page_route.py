"""`GET /`: the report of the hub as it is now, for people. It holds no script, and the browser is told to run none."""

from __future__ import annotations

import threading
import time

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from adapterhub_cl.registry import Registry
from adapterhub_cl.reporting.page import page_of

FRESH_S = 5.0  # a page is read from the hub no more often
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def route(registry: Registry) -> APIRouter:
    """The one route."""
    found, shown = APIRouter(), _Shown(registry)

    @found.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(await run_in_threadpool(shown.page), headers=HEADERS)

    return found


class _Shown:
    """The newest page, made again when it is asked for and old."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self._lock = registry, threading.Lock()
        self._at, self._page = -FRESH_S, ""

    def page(self) -> str:
        with self._lock:
            if time.monotonic() - self._at >= FRESH_S:
                self._page, self._at = page_of(self.registry), time.monotonic()
            return self._page
