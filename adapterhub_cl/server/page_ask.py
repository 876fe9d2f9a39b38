"""The playground: a text, where the router would send it, who answered, and how sure they were."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from adapterhub_cl.data.values import whole_characters
from adapterhub_cl.errors import AdapterHubError, UsageError
from adapterhub_cl.server.asking import AUTO, Asker
from adapterhub_cl.server.failing import Refused, told_of
from adapterhub_cl.server.page_shell import PageRoute, form_of, shown
from adapterhub_cl.types import Example, Route

TITLE = "Playground"
MOST = 20_000  # characters of a text
NEIGHBOURS = 3
SCORES = 12  # tasks and labels that are listed


def routes(asker: Asker) -> APIRouter:
    """The form, and its answer."""
    found = APIRouter(route_class=PageRoute, include_in_schema=False)

    @found.get("/page/ask")
    async def form(http: Request) -> HTMLResponse:
        return shown(http, "ask", TITLE, text="", model=AUTO, answer=None, route=None, said="")

    @found.post("/page/ask")
    async def ask(http: Request) -> HTMLResponse:
        given = await form_of(http, "text", "model")
        text, model = given["text"].replace("\r\n", "\n"), given["model"].strip() or AUTO
        try:
            if len(text) > MOST:
                raise UsageError(f"the text has {len(text):,} characters, and the playground takes {MOST:,}")
            named = await asker.named(model)
            writing = asker.writing(None, 0.0, 1.0, 0, (), "max_tokens")
            request = asker.request(http, Example(whole_characters(text)), named, writing, f"page-{uuid.uuid4().hex}")
            (answer,) = await asker.answers(http, [request])
        except (AdapterHubError, Refused) as error:
            return _refused(http, error, text, model)
        route, said = await run_in_threadpool(_route, asker, text)
        scores = sorted(answer.scores.items(), key=lambda pair: -pair[1])[:SCORES]
        tasks = sorted(route.scores.items(), key=lambda pair: -pair[1])[:SCORES] if route else []
        values: dict[str, Any] = {
            "answer": answer,
            "digest": request.answered_by.sha256 if request.answered_by else "",
            "scores": scores,
            "tasks": tasks,
        }
        return shown(http, "ask", TITLE, text=text, model=model, route=route, said=said, **values)

    return found


def _route(asker: Asker, text: str) -> tuple[Route | None, str]:
    """Where the router sends a text; or why that cannot be told."""
    try:
        (route,) = asker.engine.route([text], explain=NEIGHBOURS)
    except AdapterHubError as error:
        return None, error.message
    return route, ""


def _refused(http: Request, error: AdapterHubError | Refused, text: str, model: str) -> HTMLResponse:
    """The form again, with what was typed and what is wrong with it.

    Raises:
        AdapterHubError, Refused: the fault is the server's.
    """
    status, _, _, said = told_of(error)
    if status >= 500:
        raise error
    return shown(http, "ask", TITLE, status, text=text[:MOST], model=model, answer=None, route=None, said=said)
