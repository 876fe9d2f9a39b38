"""How a page for people is sent: its frame, its headers, and errors as a page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.reporting import page as report
from adapterhub_cl.reporting.templating import filled
from adapterhub_cl.server.api_keys import ROLES
from adapterhub_cl.server.failing import Refused, told_of

PAGE, BELOW = "/", "/page/"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer a browser sends forms with `Origin: null`
    "cache-control": "no-store",
}
FOLDER = Path(report.__file__).parent
ASSETS = {"live.css": ("text/css", ("page.css", "live.css")), "live.js": ("text/javascript", ("live.js",))}


def is_page(path: str) -> bool:
    """Whether a path is one of the pages for people."""
    return path == PAGE or path.startswith(BELOW)


@cache
def asset(name: str) -> bytes:
    """A style sheet or a script."""
    return b"\n".join((FOLDER / part).read_bytes() for part in ASSETS[name][1])


@cache
def _stamp() -> str:
    """Changes with the assets, so that a browser does not keep old ones."""
    return hashlib.sha256(b"".join(asset(name) for name in ASSETS)).hexdigest()[:12]


def role_of_request(http: Request) -> str:
    """The role of the key that asks, as the guard has found it."""
    return str(http.scope.get("state", {}).get("role", ROLES[0]))


def shown(http: Request, template: str, title: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page.

    Args:
        values: what the template needs beside the frame's own.
    """
    role = role_of_request(http)
    may = {one: ROLES.index(role) >= ROLES.index(one) for one in ROLES}
    text = filled(f"live_{template}.html.j2", title=title, here=http.url.path, may=may, stamp=_stamp(), **values)
    return HTMLResponse(text, status, {**HEADERS, "content-security-policy": POLICY})


def refusal(http: Request, error: Exception) -> HTMLResponse:
    """An error as a page."""
    if isinstance(error, HTTPException):
        status, said = error.status_code, str(error.detail)
    else:
        status, _, _, said = told_of(error)
    hint = ""
    if isinstance(error, AdapterHubError) and said.startswith(error.message):  # otherwise it is not told to who asks
        said, hint = error.message, error.hint  # people who look at the page may use the shell too
    return shown(http, "refused", said[:1].upper() + said[1:], status, hint=hint, code=status)


class PageRoute(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(http: Request) -> Response:
            try:
                return await handle(http)
            except (AdapterHubError, Refused, HTTPException) as error:
                return refusal(http, error)

        return handled


async def form_of(http: Request, *names: str) -> dict[str, str]:
    """The fields of a form; those that are missing are empty.

    Raises:
        Refused: it is not a form, or a field is a file.
    """
    if not http.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise Refused(415, "this is not a form of the page", "invalid_request")
    fields = await http.form(max_fields=20)
    found = {name: fields.get(name, "") for name in names}
    return {name: value if isinstance(value, str) else "" for name, value in found.items()}
