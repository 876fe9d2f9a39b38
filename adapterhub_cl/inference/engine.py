"""The engine: one base, many adapters, requests from any number of threads answered in mixed batches.

Requests wait in a queue; one worker takes what is there (and waits a few milliseconds for more), lets the router
choose where a request leaves the task open, and answers all of it in batches whose rows have adapters of their own.
Answers that are written token by token form one running batch: others join it and leave it at any token, and labels
are chosen between two tokens. Whatever is committed to the hub meanwhile (a new version, a moved alias, a forgotten
task) counts for the requests that are taken from the queue afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from adapterhub_cl.answering.writing import Writing
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bases.compute_threads import let_go_of_threads
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import AdapterHubError, UsageError
from adapterhub_cl.inference.engine_settings import Settings
from adapterhub_cl.inference.queue import Call
from adapterhub_cl.inference.requests import AnswerRequest, Messages, example_of, examples_of, free_request
from adapterhub_cl.inference.worker import Worker
from adapterhub_cl.objectives import refuse_writing
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import Example, Prediction, Route

if TYPE_CHECKING:
    from adapterhub_cl.deciding.drift import Drift
    from adapterhub_cl.progress import Reporter


class Engine:
    """Answers requests; a context manager. All methods may be called from any thread.

    Made by `AdapterHub.engine`. Not more than one engine works on a hub object at a time; processes may have one each.
    """

    def __init__(
        self, registry: Registry, base: LoadedBase, settings: Settings, reporter: Reporter | None = None
    ) -> None:
        self.registry, self.base, self.settings = registry, base, settings
        self._worker = Worker(registry, base, settings, reporter)
        let_go_of_threads()  # the worker computes from now on, not this thread
        self._thread = threading.Thread(target=self._worker.run, name="adapter-engine", daemon=True)
        self._thread.start()

    @property
    def bank(self) -> LoraBank:
        """The adapters in memory."""
        return self._worker.bank

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close(abandon=kind is not None)

    # -- asking ----------------------------------------------------------------------------------

    def submit(
        self,
        text: str | Example,
        *,
        task: str | None = None,
        adapter: str | None = None,
        top_k: int | None = None,
        **writing: Any,
    ) -> Future[Prediction]:
        """Ask, and go on; see `predict`. What is wrong with a request is raised by its future."""
        k = self.settings.top_k if top_k is None else top_k
        return self.ask(AnswerRequest(example_of(text), task, adapter, k, self.settings.fallback, Writing.of(writing)))

    def ask(self, request: AnswerRequest) -> Future[Prediction]:
        """Put a request into the queue."""
        self._worker.queue.put([request])
        return request.future

    def predict(
        self,
        inputs: Sequence[str | Example],
        *,
        task: str | None = None,
        adapter: str | None = None,
        top_k: int | None = None,
        fallback: bool | None = None,
        progress: Any = None,
        **writing: Any,
    ) -> list[Prediction]:
        """Answers, in order: a choice task's label, or a written answer.

        Args:
            task: whose prompt and labels are used, and whose serving version answers; None lets the router choose.
            adapter: this version answers (`base`: none); the router chooses the task where it has several.
            top_k: mix the adapters of up to this many tasks by the router's weights.
            fallback: let the base answer what is out of distribution; None: as the engine's settings say.
            progress: called with the number of inputs done.
            writing: `max_new_tokens`, `temperature`, `top_p`, `seed`, `stop`: of written answers.

        Raises:
            DataError: an input is empty.
            UsageError: the hub has no adapter.
            UnknownNameError: no such task or adapter.
        """
        wanted = Writing.of(writing)
        steps_in = self.settings.fallback if fallback is None else fallback
        top_k = self.settings.top_k if top_k is None else top_k
        requests = [AnswerRequest(example, task, adapter, top_k, steps_in, wanted) for example in examples_of(inputs)]
        self._worker.queue.put(requests)
        return self._results(requests, progress)

    def generate(
        self,
        text: str,
        *,
        task: str | None = None,
        adapter: str | None = None,
        top_k: int | None = None,
        raw: bool = False,
        **writing: Any,
    ) -> Prediction:
        """What is written after a text, as `.prediction`; see `predict`.

        Args:
            raw: go on from the text as it is, without the task's prompt format.

        Raises:
            DataError: the text is empty, or longer than the context.
        """
        answer: Prediction = self._wait(self.ask(self._free(text, task, adapter, top_k, raw, writing)))
        return answer

    def stream(
        self,
        text: str | Messages,
        *,
        task: str | None = None,
        adapter: str | None = None,
        top_k: int | None = None,
        raw: bool = False,
        **writing: Any,
    ) -> Iterator[str]:
        """The same (a text) or `chat` (messages), piece by piece; writing ends where the iterator is given up."""
        request = self._free(text, task, adapter, top_k, raw, writing)
        pieces: SimpleQueue[str | None] = SimpleQueue()
        going = threading.Event()
        going.set()

        def emit(piece: str) -> bool:
            pieces.put(piece)
            return going.is_set()

        request.emit, request.wanted = emit, going.is_set
        request.future.add_done_callback(lambda _: pieces.put(None))
        self.ask(request)
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            self._wait(request.future)
        finally:
            going.clear()

    def chat(
        self,
        messages: Messages,
        *,
        task: str | None = None,
        adapter: str | None = None,
        top_k: int | None = None,
        **writing: Any,
    ) -> Prediction:
        """The answer to a conversation (`[{"role": "user", "content": …}, …]`), as `.prediction`.

        The router looks at the last message. A task with the prompt format `chat`, and the base, see the whole
        conversation (the oldest turns go where it is too long); a task with another format sees the last message, as
        in its training.
        """
        answer: Prediction = self._wait(self.ask(self._free(messages, task, adapter, top_k, False, writing)))
        return answer

    def route(self, inputs: Sequence[str | Example], *, top_k: int | None = None, explain: int = 0) -> list[Route]:
        """Where the router sends inputs, and how sure it is; nothing is answered or counted.

        Args:
            explain: also the scores of all tasks, and this many nearest replay samples.

        Raises:
            DataError: an input is empty.
            UsageError: the hub has no adapter, or no task that the router could know.
        """
        examples = examples_of(inputs)
        k = self.settings.top_k if top_k is None else top_k
        explain = 3 if explain is True else explain
        if explain < 0:
            raise UsageError(f"explain must be 0 or more, not {explain}", "explain=3 shows three samples")
        if not isinstance(k, int) or k < 1:
            raise UsageError(f"--top-k must be 1 or more, not {k}", "1 takes the likeliest task alone")

        def work() -> list[Route]:
            return self._worker.decider.routes(self._worker.view, examples, k, explain, self.settings.fallback)

        return self._call(work)  # type: ignore[no-any-return]

    def drift(self, inputs: Sequence[str | Example]) -> Drift:
        """Compare inputs with what the router knows; see `adapterhub_cl.deciding.drift`.

        Raises:
            DataError: an input is empty.
            UsageError: the hub has no adapter, or no task that the router could know.
        """
        examples = examples_of(inputs)

        def work() -> Drift:
            return self._worker.decider.drift(self._worker.view, examples)

        return self._call(work)  # type: ignore[no-any-return]

    def prepare(self) -> None:
        """Let the router know the hub as it is now: fit it, or load it, before the first request does.

        Raises:
            UsageError: the hub has no adapter.
            AdapterError: the router can know none of its tasks.
        """

        def work() -> None:
            self._worker.decider.refresh(self._worker.view)

        self._call(work)

    @property
    def waiting(self) -> int:
        """How many requests wait to be answered or to join those that are being written."""
        return len(self._worker.queue) + self._worker.rows.waiting

    @property
    def resident(self) -> list[str]:
        """The versions that are loaded where the answers are computed."""
        return self._worker.rows.refs

    @property
    def writing(self) -> int:
        """How many answers are being written, token by token."""
        return self._worker.rows.writing

    def reachable(self) -> bool:
        """Whether what computes the answers can be asked: a vLLM may be down. It may wait for some seconds."""
        return not self.closing and self._worker.rows.reachable()

    @property
    def closing(self) -> bool:
        """Whether it takes nothing more."""
        return self._worker.queue.closed

    @property
    def closed(self) -> bool:
        """Whether it has answered everything and left the base."""
        return self._worker.done.is_set()

    @property
    def notes(self) -> list[str]:
        """What the user should know: tasks that the router cannot choose, counters that could not be written."""
        problem = [f"counters were not written: {self._worker.tally.problem}"] if self._worker.tally.problem else []
        return [*self._worker.decider.notes, *problem]

    def close(self, *, abandon: bool = False) -> None:
        """Answer what is waiting, write the counters, take the bank off the base; returns when that is done (called by
        the engine's own thread, in a callback, it is done soon after).

        Args:
            abandon: leave unanswered what is waiting, and stop writing.
        """
        if abandon:
            self._worker.halt.set()
        self._worker.queue.close(abandon=abandon)
        if threading.current_thread() is not self._thread:
            self._worker.done.wait()

    # -- inside ----------------------------------------------------------------------------------

    def _free(
        self,
        asked: str | Messages,
        task: str | None,
        adapter: str | None,
        top_k: int | None,
        raw: bool,
        writing: Mapping[str, Any],
    ) -> AnswerRequest:
        refuse_writing(self.base.info, "writing an answer")
        k = self.settings.top_k if top_k is None else top_k
        request = free_request(asked, task, adapter, k, raw, writing)
        request.fallback = self.settings.fallback
        return request

    def _call(self, work: Any) -> Any:
        """Have the worker do something between two batches; again, where the hub changed while it failed."""

        call = Call(lambda: self._worker.steadily(work))
        self._worker.queue.put([call])
        return self._wait(call.future)

    def _wait(self, future: Future[Any]) -> Any:
        """What a future gives.

        Raises:
            UsageError: the engine's own thread would wait for itself.
            AdapterHubError: the engine was closed before it came to it.
        """
        if threading.current_thread() is self._thread and not future.done():
            raise UsageError(
                "a callback of the engine waits for the engine", "ask with submit there, and wait in another thread"
            )
        try:
            return future.result()
        except CancelledError:
            raise AdapterHubError("the engine was closed before it answered", "ask again: hub.engine()") from None

    def _results(self, requests: Sequence[AnswerRequest], progress: Any) -> list[Prediction]:
        found = []
        for request in requests:
            found.append(self._wait(request.future))
            if progress is not None:
                progress(1)
        return found
