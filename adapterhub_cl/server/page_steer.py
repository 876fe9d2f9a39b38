"""Steering from the page: a form asks for a change, a second page shows it and asks back, and a third tells what
became of it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from adapterhub_cl.server.asking import key_name
from adapterhub_cl.server.failing import Refused
from adapterhub_cl.server.page_shell import PageRoute, form_of, shown
from adapterhub_cl.server.page_steering import Steering

FIELDS = ("action", "ref", "alias", "token")


def routes(steering: Steering) -> APIRouter:
    """The two steps of a change, and its outcome. The guard has checked role and origin."""
    found = APIRouter(route_class=PageRoute, include_in_schema=False)

    @found.post("/page/steer")
    async def confirm(http: Request) -> HTMLResponse:
        given, who = await form_of(http, *FIELDS), key_name(http)
        if not steering.is_mine(given["token"], who):
            raise _stale()
        plan = await run_in_threadpool(steering.plan, given["action"], given["ref"].strip(), given["alias"].strip())
        return shown(http, "confirm", plan.title, plan=plan, token=steering.token(who, plan))

    @found.post("/page/steer/do")
    async def do(http: Request) -> Response:
        given, who = await form_of(http, *FIELDS), key_name(http)
        plan = await run_in_threadpool(steering.plan, given["action"], given["ref"].strip(), given["alias"].strip())
        if not steering.is_mine(given["token"], who, plan):
            raise _stale()
        outcome = await run_in_threadpool(steering.do, plan, who)
        return RedirectResponse(f"/page/outcome/{outcome.number}", 303)

    @found.get("/page/outcome/{number}")
    async def outcome(http: Request, number: str) -> HTMLResponse:
        found = steering.outcome(number)
        return shown(http, "outcome", found.title, outcome=found)

    return found


def _stale() -> Refused:
    return Refused(
        409, "the hub has changed since this form was shown, or the form is not this server's: look again", "stale"
    )
