"""`/v1/feedback`: what a user says of an answer that was kept, and takes back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from adapterhub_cl.errors import HubError, IntegrityError, StorageError, UnknownNameError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.server.asking import key_name
from adapterhub_cl.server.failing import Refused, sentence_of
from adapterhub_cl.server.openai_routes import choice_id, refuse_unknown
from adapterhub_cl.server.wire import FeedbackAsked
from adapterhub_cl.traffic.journal import KeptAnswer, Said
from adapterhub_cl.traffic.keeper import EVERY_S, Keeper
from adapterhub_cl.traffic.saying import said_of

LOG = logging.getLogger("adapterhub_cl.server")


def route(registry: Registry, keeper: Keeper | None) -> APIRouter:
    """The two routes."""
    found = APIRouter()

    @found.post("/v1/feedback")
    async def feedback(http: Request, asked: FeedbackAsked) -> dict[str, Any]:
        refuse_unknown(asked)
        with _keeping(keeper) as there:
            said = await run_in_threadpool(_say, there, registry, asked, key_name(http))
        return {"object": "feedback", "id": said.id, "task": said.task, "correct": said.good, "answer": said.right}

    @found.delete("/v1/feedback/{answer}")
    async def withdraw(answer: str, choice: int = 0) -> dict[str, Any]:
        with _keeping(keeper) as there:
            learned = await run_in_threadpool(_withdraw, there, choice_id(answer, choice))
        return {"object": "feedback", "id": answer, "deleted": True, "learned": learned}

    return found


@contextmanager
def _keeping(keeper: Keeper | None) -> Iterator[Keeper]:
    """What keeps the answers.

    Raises:
        Refused: nothing does, or its file cannot be used now.
    """
    if keeper is None:
        raise Refused(400, "this server keeps no answers: start it with serve --log", "not_kept")
    try:
        yield keeper
    except (HubError, IntegrityError, StorageError) as error:
        LOG.error("%s; %s", error.message, error.hint)
        message = "feedback cannot be kept right now; the server's log says why"
        raise Refused(503, message, "not_kept") from error


def _withdraw(keeper: Keeper, answer: str) -> bool:
    """Take back what was said of an answer; whether a lesson has learned it already."""
    _kept(keeper, answer)
    try:
        return bool(keeper.journal.withdraw(answer))
    except UsageError as error:
        raise Refused(404, error.message, "feedback_not_found", "id") from error


def _say(keeper: Keeper, registry: Registry, asked: FeedbackAsked, by: str) -> Said:
    told = {"correct": asked.correct, "label": asked.label, "answer": asked.answer, "thumb": asked.thumb}
    kept = _kept(keeper, choice_id(asked.id, asked.choice))
    try:
        said = said_of(registry, kept, {**told, "task": asked.task}, by)
    except UnknownNameError as error:
        hint = "if the question belongs to another task, name it: task"
        raise Refused(400, f"{sentence_of(error)}; {hint}", "unknown_label", "label") from error
    keeper.journal.say(said)
    return said


def _kept(keeper: Keeper, answer: str) -> KeptAnswer:
    """The answer, also where it was given a moment ago.

    Raises:
        Refused: it is not kept.
    """
    for wait_s in (0.0, EVERY_S + 0.2):  # another server on this hub writes what it gave within that time
        try:
            return keeper.journal.get(answer)
        except UnknownNameError:
            keeper.flush()
            time.sleep(wait_s)
    try:
        return keeper.journal.get(answer)
    except UnknownNameError as error:
        why = "it was never given, was not among the share that is kept, or is too old"
        raise Refused(404, f"no answer {answer!r} is kept: {why}", "answer_not_found", "id") from error
