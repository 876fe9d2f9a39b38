"""Errors in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`, or in Anthropic's, and their status."""

from __future__ import annotations

import logging
from typing import Any

from fastapi.responses import JSONResponse

from adapterhub_cl.errors import (
    AdapterHubError,
    DataError,
    EngineDownError,
    EngineError,
    IntegrityError,
    StorageError,
    UnknownNameError,
    UsageError,
)

LOG = logging.getLogger("adapterhub_cl.server")


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        code: a word that programs can compare; `param` is the field that is wrong.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


MESSAGES = "/v1/messages"  # the route that answers in Anthropic's form, its errors too
# Anthropic's words for what went wrong, by status.
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def body_for(path: str, message: str, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error in the form that clients of this path expect."""
    if path != MESSAGES:
        return body_of(message, status, code, param)
    kind = _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def body_of(message: str, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def told_of(error: Exception) -> tuple[int, str, str | None, str]:
    """Status, code, field and message of an error of ours, or of one that nobody expected (whose text stays in the
    log)."""
    if isinstance(error, Refused):
        return error.status, error.code, error.param, str(error)
    if isinstance(error, AdapterHubError):
        status, code = status_of(error)
        message = sentence_of(error)
        if isinstance(error, StorageError | IntegrityError):  # it names files of this machine
            LOG.error(message)
            message = "the hub is damaged, or cannot be read right now; the server's log says where"
        return status, code, "model" if status == 404 else None, message
    return 500, "internal_error", None, "an internal error; the server's log has it"


def sentence_of(error: AdapterHubError) -> str:
    """An error with its hint, as far as a client can follow it: commands and options of the shell are left out."""
    parts = [part for part in error.hint.split("; ") if part and "cl-adapter" not in part and "--" not in part]
    return "; ".join([error.message, *parts])


def answer_of(error: Exception, path: str = "") -> JSONResponse:
    """The response to an error of a request for this path."""
    status, code, param, message = told_of(error)
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    headers |= {"retry-after": "1"} if status in (429, 503) else {}
    return JSONResponse(body_for(path, message, status, code, param), status, headers)


def status_of(error: AdapterHubError) -> tuple[int, str]:
    """HTTP's status, and the code."""
    if isinstance(error, UnknownNameError):
        return 404, "model_not_found"
    if isinstance(error, DataError | UsageError):
        return 400, "invalid_request"
    if isinstance(error, StorageError):
        return 503, "storage"
    if isinstance(error, EngineError):
        return (503, "engine_down") if isinstance(error, EngineDownError) else (502, "engine_failed")
    return 500, type(error).__name__
