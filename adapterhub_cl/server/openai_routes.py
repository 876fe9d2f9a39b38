"""OpenAI's interface: models, chat and completions, whole or as a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from adapterhub_cl.data.turns import messages_of
from adapterhub_cl.data.values import whole_characters
from adapterhub_cl.errors import DataError
from adapterhub_cl.inference.requests import AnswerRequest
from adapterhub_cl.server.asking import AUTO, Asker
from adapterhub_cl.server.failing import Refused, answer_of
from adapterhub_cl.server.wire import Asking, Body, ChatAsked, ChatMessage, CompletionAsked
from adapterhub_cl.types import BASE, Example, Prediction

# One answer as a choice of the response: (index, prediction) → JSON.
Shape = Callable[[int, Prediction], dict[str, Any]]


def routes(asker: Asker) -> APIRouter:
    """The routes of OpenAI's interface."""
    found = APIRouter()

    @found.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": await run_in_threadpool(_models, asker)}

    @found.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        named = await asker.named(name)
        row = {"id": name, "object": "model", "created": 0, "owned_by": "adapterhub-cl"}
        return {**row, "resolves_to": named.resolves_to} if named.resolves_to else row

    @found.post("/v1/chat/completions")
    async def chat(http: Request, asked: ChatAsked) -> Response:
        refuse_unknown(asked)
        if asked.stream and asked.logprobs:
            raise Refused(400, "logprobs come with whole answers only", "unsupported", "logprobs")
        example = conversation_of_messages(asked.messages)
        param = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
        most = asked.max_completion_tokens or asked.max_tokens
        requests = await _requests(asker, http, asked, [example], most, param, "chatcmpl")

        def choice(index: int, answer: Prediction) -> dict[str, Any]:
            logs = {"content": [log for log, _ in _logs(asker, answer)]} if asked.logprobs else None
            message = {"role": "assistant", "content": answer.prediction, "refusal": None}
            return {"index": index, "message": message, "finish_reason": _why(answer), "logprobs": logs}

        if asked.stream:
            return await _streamed(asker, asked, requests, "chat.completion.chunk", _delta)
        return await _whole(asker, http, requests, "chat.completion", choice)

    @found.post("/v1/completions")
    async def completions(http: Request, asked: CompletionAsked) -> Response:
        refuse_unknown(asked)
        if asked.stream and asked.logprobs is not None:
            raise Refused(400, "logprobs come with whole answers only", "unsupported", "logprobs")
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        examples = [Example(whole_characters(prompt)) for prompt in prompts]
        requests = await _requests(asker, http, asked, examples, asked.max_tokens, "max_tokens", "cmpl", raw=True)

        def choice(index: int, answer: Prediction) -> dict[str, Any]:
            logs = None
            if asked.logprobs is not None:
                told = _logs(asker, answer)
                logs = {"tokens": [row["token"] for row, _ in told], "token_logprobs": [log for _, log in told]}
            return {"index": index, "text": answer.prediction, "finish_reason": _why(answer), "logprobs": logs}

        if asked.stream:
            return await _streamed(asker, asked, requests, "text_completion", _text)
        return await _whole(asker, http, requests, "text_completion", choice)

    return found


def refuse_unknown(asked: Body) -> None:
    """Refuse fields that would change the answer and are not served.

    Raises:
        Refused: names the first of them.
    """
    if unknown := asked.unknown():
        raise Refused(400, f"this server does not know the field {unknown[0]!r}", "unsupported", unknown[0])


def _models(asker: Asker) -> list[dict[str, Any]]:
    registry = asker.registry
    names = [AUTO, BASE, *sorted(registry.serving())]
    names += [r.ref for r in registry.adapters(all_versions=True, include_rejected=False)]
    return [{"id": name, "object": "model", "created": 0, "owned_by": "adapterhub-cl"} for name in dict.fromkeys(names)]


def conversation_of_messages(said: Sequence[ChatMessage]) -> Example:
    """The messages as an example, read as those of training data are.

    Raises:
        Refused: they do not end with a question, or hold what is no text.
    """
    if said[-1].role not in ("user", "tool"):
        raise Refused(400, "the last message must be the user's", "invalid_request", "messages")
    given = [message.model_dump(exclude_none=True) for message in said]
    try:
        return Example.conversation(messages_of(given, "the request", "messages"))
    except DataError as error:
        raise Refused(400, f"{error.message}: {error.hint}", "unsupported", "messages") from None


async def _requests(
    asker: Asker,
    http: Request,
    asked: Asking,
    examples: Sequence[Example],
    most: int | None,
    param: str,
    kind: str,
    *,
    raw: bool = False,
) -> list[AnswerRequest]:
    """`n` requests for each example, each with a seed of its own. The first one's id is that of the response; the
    others have the index of their choice behind it."""
    whole = f"{kind}-{uuid.uuid4().hex}"
    named = await asker.named(asked.model)
    writing = asker.writing(most, asked.temperature, asked.top_p, asked.seed or 0, asked.stops(), param)
    if asked.seed is None and asked.temperature > 0:
        writing = replace(writing, seed=uuid.uuid4().int % 2**62)
    writings = [(example, replace(writing, seed=writing.seed + k)) for example in examples for k in range(asked.n)]
    return [
        asker.request(http, example, named, how, choice_id(whole, index), raw=raw)
        for index, (example, how) in enumerate(writings)
    ]


def choice_id(response: str, index: int) -> str:
    """What a choice of a response is called in feedback."""
    return f"{response}-{index}" if index else response


async def _whole(
    asker: Asker, http: Request, requests: Sequence[AnswerRequest], kind: str, choice: Shape
) -> JSONResponse:
    found = await asker.answers(http, requests)
    body = {
        "id": requests[0].id,
        "object": kind,
        "created": int(time.time()),
        "model": found[0].adapter,
        "choices": [choice(index, answer) for index, answer in enumerate(found)],
        "usage": _usage(found),
    }
    return JSONResponse(body, headers=asker.headers(requests[0].answered_by, found))


async def _streamed(
    asker: Asker, asked: Asking, requests: Sequence[AnswerRequest], kind: str, piece_of: Callable[..., dict[str, Any]]
) -> Response:
    """The answers as server-sent events. The first is waited for, so that the headers can say who answers and an error
    is an error."""
    events = await begun(asker, requests)
    if isinstance(events, Exception):
        return answer_of(events)
    who = requests[0].answered_by
    head = {"id": requests[0].id, "object": kind, "created": int(time.time()), "model": who.ref if who else asked.model}

    def line(choices: list[dict[str, Any]], **more: Any) -> str:
        return _event({**head, "choices": choices, **more})

    async def lines() -> AsyncIterator[str]:
        if kind.startswith("chat"):
            for index in range(len(requests)):
                yield line([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        found: list[Prediction] = []
        async for index, what in events:
            if isinstance(what, str):
                yield line([piece_of(index, what)])
            elif isinstance(what, Exception):
                yield _event(json.loads(bytes(answer_of(what).body)))
                return
            else:
                found.append(what)
                yield line([{**piece_of(index, ""), "finish_reason": _why(what)}])
        if asked.says_usage:
            yield line([], usage=_usage(found))
        yield "data: [DONE]\n\n"

    return event_stream(lines(), asker.headers(who))


async def begun(asker: Asker, requests: Sequence[AnswerRequest]) -> AsyncIterator[Any] | Exception:
    """What `Asker.stream` gives, once the first of it is there: by then it is known who answers. The error, if that is
    the first."""
    events = asker.stream(requests)
    first = await anext(events)
    if isinstance(first[1], Exception):
        await events.aclose()  # type: ignore[attr-defined]
        return first[1]
    return _following(first, events)


def event_stream(lines: AsyncIterator[str], headers: Mapping[str, str]) -> Response:
    """Server-sent events that no proxy holds back."""
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)


async def _following(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The first event, and then the others; these are given up where this is."""
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()  # type: ignore[attr-defined]


def _delta(index: int, piece: str) -> dict[str, Any]:
    return {"index": index, "delta": {"content": piece} if piece else {}, "finish_reason": None}


def _text(index: int, piece: str) -> dict[str, Any]:
    return {"index": index, "text": piece, "finish_reason": None}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _why(answer: Prediction) -> str:
    """Why an answer ended."""
    return "stop" if answer.finished else "length"


def tokens_used(found: Sequence[Prediction]) -> tuple[int, int]:
    """Tokens of the prompts and of the answers; a label that was chosen counts as one."""
    return sum(answer.prompt_tokens for answer in found), sum(max(1, len(answer.tokens)) for answer in found)


def _usage(found: Sequence[Prediction]) -> dict[str, int]:
    asked, written = tokens_used(found)
    return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}


def _logs(asker: Asker, answer: Prediction) -> list[tuple[dict[str, Any], float]]:
    """Each token of a written answer with its log-probability; of a label its probability as a whole."""
    import math

    tokenizer = asker.engine.base.tokenizer
    told = [(tokenizer.decode([token]), log) for token, log in answer.tokens]
    told = told or [(answer.prediction, math.log(max(answer.confidence, 1e-12)))]
    return [
        ({"token": text, "logprob": log, "bytes": list(text.encode()), "top_logprobs": []}, log) for text, log in told
    ]
