"""From a request's fields to the engine and back, without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from adapterhub_cl.answering.writing import Writing
from adapterhub_cl.errors import AdapterError
from adapterhub_cl.inference.engine import Engine
from adapterhub_cl.inference.requests import AnswerRequest, Resolved
from adapterhub_cl.registry import Registry
from adapterhub_cl.server.failing import Refused, sentence_of
from adapterhub_cl.server.serve_options import ServeOptions
from adapterhub_cl.traffic.conversations import conversation_of
from adapterhub_cl.types import BASE, Example, Prediction

AUTO = "auto"
LOOK_S = 0.25  # how often a waiting request looks whether its client is still there


@dataclass(frozen=True)
class Named:
    """What the field `model` stands for.

    Attributes:
        task, adapter: as `AnswerRequest` takes them; an alias stays one, so that what it names when the request's turn
            comes answers.
        free: write an answer instead of choosing a label: only for the plain base.
        resolves_to: the version that `adapter` names now; empty for a task and for the base.
    """

    task: str | None = None
    adapter: str | None = None
    free: bool = False
    resolves_to: str = ""


class Asker:
    """Asks a hub's engine for the requests of the server.

    Args:
        answered: called with each request and its prediction: they are counted, and kept.
    """

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        options: ServeOptions,
        answered: Callable[[AnswerRequest, Prediction], None],
    ) -> None:
        self.registry, self.engine, self.options, self.answered = registry, engine, options, answered

    async def named(self, model: str) -> Named:
        """What a model's name stands for.

        Raises:
            UnknownNameError: nothing of the hub is called so.
        """
        serving = await run_in_threadpool(self.registry.serving)
        if model in ("", AUTO) and serving:
            return Named()
        if model in ("", AUTO, BASE):  # in a hub without tasks the base answers everything
            return Named(adapter=BASE, free=True)
        if model in serving:
            return Named(task=model)
        try:
            record = await run_in_threadpool(self.registry.get, model)
        except AdapterError as error:  # it has no version that may answer
            raise Refused(404, sentence_of(error), "model_not_found", "model") from error
        return Named(adapter=model, resolves_to=record.ref)

    def writing(
        self, wanted: int | None, temperature: float, top_p: float, seed: int, stop: Sequence[str], param: str
    ) -> Writing:
        """How an answer is written.

        Raises:
            Refused: more tokens are wanted than the server gives.
        """
        most = self.options.max_tokens
        if wanted is not None and wanted > most:
            raise Refused(400, f"{param} is {wanted}, and this server gives at most {most}", "too_many_tokens", param)
        return Writing(wanted, temperature, top_p, seed, tuple(stop))

    def request(
        self, http: Request, example: Example, named: Named, writing: Writing, answer_id: str, *, raw: bool = False
    ) -> AnswerRequest:
        """A request to the engine, checked.

        Args:
            answer_id: what the client will call the answer.
        """
        found = AnswerRequest(
            example,
            named.task,
            named.adapter,
            fallback=self.options.fallback,
            writing=writing,
            free=named.free or raw,
            raw=raw,
            id=answer_id,
            asked_by=key_name(http),
            conversation=conversation(http, example),
        )
        found.check()
        return found

    async def answers(self, http: Request, requests: Sequence[AnswerRequest]) -> list[Prediction]:
        """All answers, in order. Where the client hangs up, or the deadline is over, the rows are freed.

        Raises:
            Refused: the deadline is over, or the client is gone.
        """
        going = threading.Event()
        going.set()
        for request in requests:
            request.emit, request.wanted = (lambda _: going.is_set()), going.is_set
        futures = [asyncio.wrap_future(self.engine.ask(request)) for request in requests]
        gathered = asyncio.gather(*futures)
        try:
            async with asyncio.timeout(self.options.deadline):
                while not gathered.done():
                    await asyncio.wait({gathered}, timeout=LOOK_S)
                    if not gathered.done() and await http.is_disconnected():
                        raise Refused(499, "the client hung up", "client_closed_request")
            found = gathered.result()
        except TimeoutError:
            raise self._late() from None
        finally:
            going.clear()
            if not gathered.done():
                gathered.cancel()
        for request, prediction in zip(requests, found, strict=True):
            self.answered(request, prediction)
        return found

    async def stream(
        self, requests: Sequence[AnswerRequest]
    ) -> AsyncIterator[tuple[int, str | Prediction | Exception]]:
        """Pieces of the answers as they are written, `(which request, piece)`; the last of each is its prediction or
        its error. Rows are freed where the iterator is given up."""
        loop, going = asyncio.get_running_loop(), threading.Event()
        events: asyncio.Queue[tuple[int, str | Prediction | Exception]] = asyncio.Queue()
        going.set()

        def tell(index: int, what: str | Prediction | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(events.put_nowait, (index, what))

        for index, request in enumerate(requests):
            given: list[str] = []

            def emit(piece: str, index: int = index, given: list[str] = given) -> bool:
                given.append(piece)
                tell(index, piece)
                return going.is_set()

            def ended(future: Any, index: int = index, given: list[str] = given) -> None:
                error = None if future.cancelled() else future.exception()
                if future.cancelled() or error is not None:
                    tell(index, error or Refused(503, "the server is shutting down", "shutting_down"))
                    return
                prediction: Prediction = future.result()
                rest = prediction.prediction.removeprefix("".join(given)) if given else prediction.prediction
                if rest and not given:  # a label is chosen as a whole
                    tell(index, rest)
                tell(index, prediction)

            request.emit, request.wanted = emit, going.is_set
            self.engine.ask(request).add_done_callback(ended)
        left = len(requests)
        try:
            async with asyncio.timeout(self.options.deadline):
                while left:
                    index, what = await events.get()
                    if not isinstance(what, str):
                        left -= 1
                    if isinstance(what, Prediction):
                        self.answered(requests[index], what)
                    yield index, what
        except TimeoutError:
            yield 0, self._late()
        finally:
            going.clear()

    def _late(self) -> Refused:
        return Refused(504, f"no answer within {self.options.deadline:g} seconds", "deadline_exceeded")

    def headers(self, who: Resolved | None, answers: Sequence[Prediction] = ()) -> dict[str, str]:
        """Which version answers, its content hash, the task, what the router said, and whether the input was cut.

        Args:
            answers: as far as they are known when the headers are sent.
        """
        if who is None:
            return {}
        found = {"x-adapter": who.ref, "x-fallback": "true" if who.fallback else "false"}
        found |= {"x-task": header_safe(who.task.name)} if who.task and who.task.name else {}
        found |= {"x-input-cut": "true"} if any(one.truncated and one.finished for one in answers) else {}
        found |= {} if who.routed is None else {"x-router-confidence": f"{who.routed.confidence:.4f}"}
        return found | ({"x-adapter-sha256": who.sha256} if who.sha256 else {})


def key_name(http: Request) -> str:
    """The name of the API key that asks; empty where there are no keys."""
    return str(http.scope.get("state", {}).get("key", ""))


def conversation(http: Request, example: Example) -> str:
    """What a request belongs to: the header `x-conversation`, else the first words of the user."""
    first = next((turn.content for turn in example.turns if turn.role == "user"), example.input)
    return conversation_of(first, http.headers.get("x-conversation", ""))


def header_safe(text: str) -> str:
    """A name as a header can hold it."""
    return "".join(c if 32 < ord(c) < 127 else "?" for c in text)
