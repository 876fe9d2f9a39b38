"""The application: routes, who may use them, limits, health, figures and the log."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub_cl.errors import AdapterHubError, UsageError
from adapterhub_cl.inference.engine import Engine
from adapterhub_cl.inference.requests import AnswerRequest
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.files import now
from adapterhub_cl.server import (
    feedback_route,
    files_route,
    jobs_route,
    messages_route,
    openai_routes,
    page_ask,
    page_route,
    page_steer,
    predict_route,
)
from adapterhub_cl.server.api_keys import NOBODY, ApiKey, found_by, read_keys
from adapterhub_cl.server.asking import Asker
from adapterhub_cl.server.counting import ServerFigures
from adapterhub_cl.server.failing import Refused, answer_of, body_for
from adapterhub_cl.server.page_facts import fresh_facts
from adapterhub_cl.server.page_shell import is_page, refusal
from adapterhub_cl.server.page_steering import Steering
from adapterhub_cl.server.serve_options import LOOPBACK, ServeOptions
from adapterhub_cl.server.tuning_order import usual_rate
from adapterhub_cl.server.tuning_runner import TuningRunner, training_command
from adapterhub_cl.server.tuning_store import TuningStore
from adapterhub_cl.server.uploads import Uploads
from adapterhub_cl.traffic.journal import Journal, KeptAnswer
from adapterhub_cl.traffic.keeper import Keeper
from adapterhub_cl.types import Prediction

LOG = logging.getLogger("adapterhub_cl.server")
ROLE_OF = {"GET": "read", "POST": "ask"}
STEERED = ("/v1/files", "/v1/fine_tuning", "/page/steer")  # what changes something below these needs the role `steer`
OPEN = ("/health/live", "/health/ready")  # asked by machines that have no key


def application(
    registry: Registry, engine: Engine, options: ServeOptions, guard: Guard, train: Sequence[str] = ()
) -> ASGIApp:
    """The server of a hub.

    Args:
        train: the command line, up to the verb, of the process that trains for fine-tuning jobs.
    """
    registry.bring = None  # who asks over HTTP does not choose what this machine fetches
    counters = ServerFigures(engine)
    keeper = None
    if options.log:

        def names() -> set[str]:
            return {task.name for task in registry.tasks()}

        keeper = Keeper(Journal(registry.path), options.log_share, options.log_days, names)

    def answered(request: AnswerRequest, answer: Prediction) -> None:
        counters.answered(answer)
        if keeper is not None:
            keeper.keep(kept_answer(request, answer))

    asker = Asker(registry, engine, options, answered)
    uploads, store = Uploads(registry.path, options.max_files), TuningStore(registry.path)
    command = train or training_command(registry)
    runner, fresh = TuningRunner(registry, store, uploads, command), fresh_facts(registry)
    steering = Steering(registry, command, fresh.forget)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        app.state.ready = True
        runner.start()
        yield
        app.state.ready = False
        await run_in_threadpool(steering.stop)
        await run_in_threadpool(runner.stop)
        if keeper is not None:
            await run_in_threadpool(keeper.close)

    app = FastAPI(title="AdapterHub-CL", lifespan=living, max_body_size=options.max_body, docs_url=None, redoc_url=None)
    app.state.ready, app.state.steering = False, steering
    app.include_router(openai_routes.routes(asker))
    app.include_router(messages_route.route(asker))
    app.include_router(predict_route.route(asker))
    app.include_router(feedback_route.route(registry, keeper))
    app.include_router(page_route.routes(registry, fresh, steering))
    app.include_router(page_ask.routes(asker))
    app.include_router(page_steer.routes(steering))
    app.include_router(files_route.routes(uploads, store))
    app.include_router(jobs_route.routes(registry, store, uploads, runner, usual_rate(engine.base)))

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        try:
            await run_in_threadpool(registry.serving)
            able = app.state.ready and await run_in_threadpool(engine.reachable)
        except AdapterHubError:  # the hub is gone, or its disk is
            able = False
        return JSONResponse({"status": "ready" if able else "not ready"}, 200 if able else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(counters.page(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(AdapterHubError)
    @app.exception_handler(Refused)
    async def told(http: Request, error: Exception) -> JSONResponse:
        return answer_of(error, http.url.path)

    @app.exception_handler(HTTPException)
    async def plain(http: Request, error: HTTPException) -> Response:
        if is_page(http.url.path):
            return refusal(http, error)
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "invalid_request")
        return JSONResponse(body_for(http.url.path, str(error.detail), error.status_code, code), error.status_code)

    @app.exception_handler(RequestValidationError)
    async def malformed(http: Request, error: RequestValidationError) -> JSONResponse:
        of_body = error.errors()[0]["loc"][:1] == ("body",)
        if of_body and "json" not in http.headers.get("content-type", ""):
            message = "the body is not read as JSON: send the header content-type: application/json"
            return JSONResponse(body_for(http.url.path, message, 400, "invalid_request"), 400)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
        message = f"{where or 'the body'}: {first['msg']}"
        return JSONResponse(body_for(http.url.path, message, 400, "invalid_request", where or None), 400)

    return Around(app, guard, counters, options.max_body)  # outside of FastAPI's own limit of a body


class Around:
    """What happens around every request: it is let in, timed, counted and logged. (Plain ASGI: Starlette's own base for
    middleware keeps a route from noticing that its client hung up.)"""

    def __init__(self, app: ASGIApp, guard: Guard, counters: ServerFigures, max_body: int) -> None:
        self.app, self.guard, self.counters, self.max_body = app, guard, counters, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, first, status, headers, name = time.perf_counter(), 0.0, 0, {}, ""

        async def watched(message: Message) -> None:
            nonlocal first, status, headers
            if message["type"] == "http.response.start":
                first, status = time.perf_counter() - started, message["status"]
                headers = {key.decode(): value.decode() for key, value in message["headers"]}
            await send(message)

        self.counters.running.inc()
        try:
            key = self.guard.admit(Request(scope))
            name = key.name
            scope.setdefault("state", {}).update(key=name, role=key.role)
            self._refuse_large(Request(scope).headers.get("content-length", ""))
            await self.app(scope, receive, watched)
        except Refused as error:
            response = refusal(Request(scope), error) if is_page(scope["path"]) else answer_of(error, scope["path"])
            if error.status == 401 and is_page(scope["path"]):
                response.headers["www-authenticate"] = 'Basic realm="any name, and an API key as the password"'
            await response(scope, receive, watched)
        except Exception as error:
            LOG.exception("an internal error")
            if not status:
                path = scope["path"]
                response = refusal(Request(scope), error) if is_page(path) else answer_of(error, path)
                await response(scope, receive, watched)
        finally:
            self.counters.running.dec()
            seconds, route = time.perf_counter() - started, getattr(scope.get("route"), "path", "unknown")
            self.counters.requests.labels(route, str(status)).inc()
            self.counters.seconds.labels(route).observe(seconds)
            self.counters.first.labels(route).observe(first)
            _log(scope["method"], route, status, name, seconds, headers)

    def _refuse_large(self, length: str) -> None:
        """Refuse a body that says that it is too large, before FastAPI does so in words of its own. (Bodies that do not
        say it are cut off there.)"""
        if length.isdigit() and int(length) > self.max_body:
            raise Refused(413, f"the body has {length} bytes, and this server takes {self.max_body}", "too_large")


class Guard:
    """Lets a request in, or refuses it: by key, role and rate."""

    @classmethod
    def of(cls, options: ServeOptions) -> Guard:
        """The guard that the options ask for.

        Raises:
            UsageError: the rate cannot be read.
            DataError: the keys cannot be read.
        """
        return cls(read_keys(Path(options.keys)) if options.keys else [], options.rate)

    def __init__(self, keys: list[ApiKey], rate: str) -> None:
        self.keys = keys
        try:
            self.limit = parse(rate) if rate else None
        except ValueError:
            raise UsageError(f"--rate {rate!r} is not a rate", "--rate 60/minute") from None
        self.windows = MovingWindowRateLimiter(MemoryStorage())

    def admit(self, http: Request) -> ApiKey:
        """The key of a request.

        Raises:
            Refused: no key or an unknown one (401), one that may not do this (403), or too many requests (429).
        """
        if http.url.path in OPEN:
            return NOBODY
        if not self.keys and http.url.hostname not in LOOPBACK:  # a site can make its own name lead to this machine
            raise Refused(403, "without keys this server answers under its own name only: localhost", "forbidden")
        key = self._key(http) if self.keys else NOBODY
        role = role_of(http.method, http.scope["path"])
        if not key.may(role):
            raise Refused(403, f"the key {key.name!r} has the role {key.role!r}, and this needs {role!r}", "forbidden")
        on_page = is_page(http.scope["path"]) and http.method != "GET"
        if (on_page or (role == "steer" and not self.keys)) and _of_another_site(http):
            raise Refused(403, "a page of another site may not change this server", "forbidden")
        who = key.name if self.keys else (http.client.host if http.client else "")
        if self.limit is not None and role != "read" and not self.windows.hit(self.limit, who):
            raise Refused(429, f"more than {self.limit}", "rate_limit_exceeded")
        return key

    def _key(self, http: Request) -> ApiKey:
        kind, _, secret = http.headers.get("authorization", "").partition(" ")
        if not kind and "x-api-key" in http.headers:  # as Anthropic's clients send it
            kind, secret = "bearer", http.headers["x-api-key"]
        if kind.lower() == "basic" and is_page(http.scope["path"]):  # what a browser asks a person for
            secret = _password(secret)
        elif kind.lower() != "bearer" or not secret:
            raise Refused(401, "no API key: send the header Authorization: Bearer KEY", "missing_api_key")
        found = found_by(self.keys, secret.strip())
        if found is None:
            raise Refused(401, "this API key is not known", "invalid_api_key")
        return found


def kept_answer(request: AnswerRequest, answer: Prediction) -> KeptAnswer:
    """A request with its answer, as the journal keeps it."""
    return KeptAnswer(
        request.id,
        now(),
        answer.task,
        answer.adapter,
        request.example,
        answer.prediction,
        answer.confidence,
        answer.routing,
        answer.out_of_distribution,
        request.conversation,
        request.asked_by,
    )


def role_of(method: str, path: str) -> str:
    """The role that a request needs. The rows of an uploaded file are for those who may upload them."""
    if path.startswith(STEERED) and (method != "GET" or path.endswith("/content")):
        return "steer"
    if method == "DELETE" and path.startswith("/v1/feedback/"):  # who may say something may take it back
        return "ask"
    return ROLE_OF.get(method, "steer")


def _of_another_site(http: Request) -> bool:
    """Whether a browser sends this for a page that is not the server's own. (A form can post files to a server on this
    machine without asking it first.)"""
    origin = http.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != http.headers.get("host", "")


def _password(encoded: str) -> str:
    """The password of HTTP's basic form; empty where it has none."""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _log(method: str, route: str, status: int, key: str, seconds: float, headers: Mapping[str, str]) -> None:
    """One line of JSON, without the texts of question and answer."""
    row: dict[str, Any] = {
        "at": round(time.time(), 3),
        "method": method,
        "route": route,
        "status": status,
        "seconds": round(seconds, 4),
        "key": key,
        **{name: headers[name] for name in ("x-adapter", "x-task") if name in headers},
    }
    LOG.info(json.dumps(row))
