"""Anthropic's interface: `POST /v1/messages`, whole or as a stream."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from adapterhub_cl.inference.requests import AnswerRequest
from adapterhub_cl.server.asking import Asker
from adapterhub_cl.server.failing import MESSAGES, answer_of
from adapterhub_cl.server.openai_routes import (
    begun,
    conversation_of_messages,
    event_stream,
    refuse_unknown,
    tokens_used,
)
from adapterhub_cl.server.wire import MessagesAsked
from adapterhub_cl.types import Prediction


def route(asker: Asker) -> APIRouter:
    """The route of Anthropic's interface."""
    found = APIRouter()

    @found.post(MESSAGES)
    async def messages(http: Request, asked: MessagesAsked) -> Response:
        refuse_unknown(asked)
        example = conversation_of_messages(asked.conversation())
        named = await asker.named(asked.model)
        seed = uuid.uuid4().int % 2**62 if asked.temperature > 0 else 0
        stops = asked.stop_sequences
        writing = asker.writing(asked.max_tokens, asked.temperature, asked.top_p, seed, stops, "max_tokens")
        request = asker.request(http, example, named, writing, f"msg-{uuid.uuid4().hex}")
        if asked.stream:
            return await _streamed(asker, request, asked.model)
        [answer] = await asker.answers(http, [request])
        content = [{"type": "text", "text": answer.prediction}]
        body = {**_head(request, answer.adapter), "content": content, **_end(answer), "usage": _usage(answer)}
        return JSONResponse(body, headers=asker.headers(request.answered_by, [answer]))

    return found


async def _streamed(asker: Asker, request: AnswerRequest, model: str) -> Response:
    """The answer as server-sent events; the headers wait for the first piece, so that they can say who answers."""
    events = await begun(asker, [request])
    if isinstance(events, Exception):
        return answer_of(events, MESSAGES)
    who = request.answered_by

    async def lines() -> AsyncIterator[str]:
        # How many tokens the prompt has is known with the answer, so the last event says it.
        start = {**_head(request, who.ref if who else model), "content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message={**start, "usage": {"input_tokens": 0, "output_tokens": 0}})
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        async for _, what in events:
            if isinstance(what, str):
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": what})
            elif isinstance(what, Exception):
                error = json.loads(bytes(answer_of(what, MESSAGES).body))
                yield _event("error", error=error["error"])
                return
            else:
                yield _event("content_block_stop", index=0)
                yield _event("message_delta", delta=_end(what), usage=_usage(what))
        yield _event("message_stop")

    return event_stream(lines(), asker.headers(who))


def _head(request: AnswerRequest, model: str) -> dict[str, Any]:
    return {"id": request.id, "type": "message", "role": "assistant", "model": model}


def _end(answer: Prediction) -> dict[str, Any]:
    """Why an answer ended."""
    if answer.stopped_at:
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.stopped_at}
    return {"stop_reason": "end_turn" if answer.finished else "max_tokens", "stop_sequence": None}


def _usage(answer: Prediction) -> dict[str, int]:
    asked, written = tokens_used([answer])
    return {"input_tokens": asked, "output_tokens": written}


def _event(kind: str, **more: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more}, ensure_ascii=False)}\n\n"
