"""The live page of a hub for people: `GET /` and the pages below `/page/` that only show."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response

from adapterhub_cl.errors import UnknownNameError
from adapterhub_cl.registry import Registry, Usage
from adapterhub_cl.registry.names import check_name, parse_ref
from adapterhub_cl.reporting.page import page_of
from adapterhub_cl.server.asking import key_name
from adapterhub_cl.server.fresh import Fresh
from adapterhub_cl.server.page_facts import LESSONS, LiveFacts, sheet
from adapterhub_cl.server.page_shell import ASSETS, HEADERS, PageRoute, asset, shown
from adapterhub_cl.server.page_steering import Steering

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
EVENTS = 20  # of an adapter's log


def routes(registry: Registry, fresh: Fresh[LiveFacts], steering: Steering) -> APIRouter:
    """What is shown."""
    found = APIRouter(route_class=PageRoute, include_in_schema=False)
    report = Fresh(lambda: page_of(registry).encode("utf-8", "replace"))

    @found.get("/")
    async def now(http: Request, q: str = "") -> HTMLResponse:
        live = await run_in_threadpool(fresh.get)
        rows = sheet(live.tasks, lambda row: row.words, q, http.query_params.get("sheet", ""))
        lessons = live.lessons[:LESSONS]
        return shown(http, "now", live.facts.name, live=live, sheet=rows, lessons=lessons)

    @found.get("/page/versions")
    async def versions(http: Request, q: str = "") -> HTMLResponse:
        live = await run_in_threadpool(fresh.get)
        rows = sheet(live.versions, lambda row: row.words, q, http.query_params.get("sheet", ""))
        return shown(http, "versions", f"Versions of {live.facts.name}", live=live, sheet=rows)

    @found.get("/page/traffic")
    async def traffic(http: Request, q: str = "") -> HTMLResponse:
        live = await run_in_threadpool(fresh.get)

        def words(row: Usage) -> str:
            return f"{row.ref} {row.task}"

        rows = sheet(live.traffic, words, q, http.query_params.get("sheet", ""))
        return shown(http, "traffic", f"Traffic of {live.facts.name}", live=live, sheet=rows)

    @found.get("/page/adapter/{name}")
    async def adapter(http: Request, name: str) -> HTMLResponse:
        live = await run_in_threadpool(fresh.get)
        rows = [row for row in live.versions if parse_ref(row.version.ref).name == check_name(name)]
        if not rows:
            known = {parse_ref(row.version.ref).name for row in live.versions}
            raise UnknownNameError("adapter", name, known)
        aliases = {alias for row in rows for alias in row.version.aliases}
        return shown(
            http,
            "adapter",
            name,
            live=live,
            name=name,
            rows=rows[:1000],
            aliases=aliases,
            canary=next((one for one in live.canaries.values() if parse_ref(one.ref).name == name), None),
            events=await run_in_threadpool(registry.events, name, EVENTS),
            token=steering.token(key_name(http)),
        )

    @found.get("/page/report")
    async def whole() -> HTMLResponse:
        headers = {**HEADERS, "content-security-policy": REPORT_POLICY, "referrer-policy": "no-referrer"}
        return HTMLResponse(await run_in_threadpool(report.get), headers=headers)

    for name, (kind, _) in ASSETS.items():
        found.add_api_route(f"/page/{name}", _sends(name, kind), methods=["GET"])
    return found


def _sends(name: str, kind: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def send() -> Response:
        headers = {"x-content-type-options": "nosniff", "cache-control": "private, max-age=86400"}
        return Response(asset(name), media_type=kind, headers=headers)

    return send
