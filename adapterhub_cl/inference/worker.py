"""The worker of an engine: the one thread that looks at the hub, asks the router and computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub_cl.adapters.lora_config import is_dora
from adapterhub_cl.adapters.serving import open_tasks
from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.answerer import AskedRow
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bank.shelf import Shelved, read_adapter
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.deciding.decider import Decider
from adapterhub_cl.deciding.view import View
from adapterhub_cl.errors import AdapterError, AdapterHubError, UsageError
from adapterhub_cl.inference.answers_rows import AnswersRows
from adapterhub_cl.inference.engine_settings import BUILT_IN, Settings
from adapterhub_cl.inference.local_rows import LocalRows
from adapterhub_cl.inference.queue import Call, Queue
from adapterhub_cl.inference.requests import AnswerRequest, Resolved, narrowed, resolve, row_of
from adapterhub_cl.inference.tally import Tally
from adapterhub_cl.registry import Registry
from adapterhub_cl.routing import Routed

if TYPE_CHECKING:
    from adapterhub_cl.progress import Reporter

TRIES = 5  # of a request that fails while the hub changes
PULLS = 8  # batches that are taken from the queue at once, so that rows of like length find each other


class Worker:
    """What an engine's thread does; `run` is its target.

    Attributes:
        queue: what waits.
        halt: set: answers that are being written end as they are.
        rows: what answers: the base of this process, or a vLLM.
        done: set when the bank is off the base and the counters are written.
    """

    def __init__(self, registry: Registry, base: LoadedBase, settings: Settings, reporter: Reporter | None) -> None:
        self.registry, self.base, self.settings = registry, base, settings
        self.bank = LoraBank(base, self._read, capacity=settings.capacity, host_bytes=settings.host_bytes)
        self.view, self.tally, self.queue = View(registry), Tally(registry), Queue()
        self.halt, self.done = threading.Event(), threading.Event()
        self.decider = Decider(
            registry, base, self.bank, settings.router, settings.options or {}, reporter, self.halt.is_set
        )
        try:
            self.rows = self._what_answers()
        except BaseException:
            self.bank.close()
            raise
        self._failed: list[tuple[AnswerRequest, Exception]] = []

    def run(self) -> None:
        """Batch after batch, and token after token of what is being written, until the queue is closed and all done."""
        try:
            while (batch := self._taken()) is not None:
                for call in batch:
                    if isinstance(call, Call):
                        call.run()
                requests = [
                    r for r in batch if isinstance(r, AnswerRequest) and r.future.set_running_or_notify_cancel()
                ]
                try:
                    if requests:
                        self._answer(requests)
                except BaseException as error:
                    _fail(requests, error)
                if len(self.rows):
                    self.rows.step()
                    self._try_again()
                if self.tally.due:
                    self.tally.flush()
        finally:
            try:
                self.tally.flush()
                self.view.close()
                self.rows.close()
                self.bank.close()
            finally:
                self.done.set()

    def steadily(self, work: Callable[[], Any]) -> Any:
        """Do something on the hub as it is now; again, where it changed while that failed."""
        self._look()
        for left in reversed(range(TRIES)):
            try:
                return work()
            except AdapterHubError:
                if not left or not self._look():
                    raise

    def _look(self) -> bool:
        """Take in what was committed since the last batch; whether anything was."""
        if not self.view.refresh():
            return False
        self.bank.remove({*self.bank.refs, *self.bank.shelf.refs} - self.view.versions.keys())
        self.rows.keep(self.view.versions.keys())
        return True

    def _taken(self) -> list[AnswerRequest | Call] | None:
        """What is to be done next; None when nothing will come any more. While answers are written, nothing is waited
        for, and no more is taken than one pass answers."""
        size = self.settings.batch_size
        if len(self.rows):
            return self.queue.take_now(size)
        return self.queue.take(size * PULLS, size, self.settings.wait_ms / 1000, lambda: self.tally.due)

    def _answer(self, requests: Sequence[AnswerRequest]) -> None:
        """Answer requests: labels at once; what is written joins what is being written."""
        self._look()
        self._attempt(requests)
        self._try_again()

    def _try_again(self) -> None:
        """What fails while the hub changes (a version is replaced and deleted between the look at who serves and the
        look at its files) is tried again on what there is then, unless part of its answer is out."""
        while self._failed:
            failed, self._failed = self._failed, []
            try:
                self._look()
            except Exception:
                for request, error in failed:
                    _fail([request], error)
                return
            again: list[AnswerRequest] = []
            for request, error in failed:
                if request.begun or request.tries >= TRIES or request.seen == self.view.generation:
                    _fail([request], error)
                elif not request.future.done():
                    again.append(request)
            try:
                self._attempt(again)
            except BaseException as error:
                _fail(again, error)

    def _attempt(self, requests: Sequence[AnswerRequest]) -> None:
        """Answer requests as the hub was at the last look. Those that could not be are put into `_failed`, at once or
        when their turn comes."""
        resolved: list[tuple[AnswerRequest, Resolved, AskedRow]] = []
        for request in requests:
            request.tries, request.seen = request.tries + 1, self.view.generation
        for request, who in self._resolved(requests, self._failed):
            request.answered_by = who
            try:
                resolved.append((request, who, row_of(self.base, request, who, self.rows.max_length)))
            except Exception as error:
                self._failed.append((request, error))
        self.rows.expect(ref for _, who, _ in resolved for ref in who.mixture)

        def give(index: int, answer: Answer | Exception) -> None:
            request, who, _ = resolved[index]
            if request.future.done():
                return
            if isinstance(answer, Exception):
                self._failed.append((request, answer))
                return
            name = who.task.name if who.task else ""
            sure = who.routed.confidence if who.routed else 0.0
            chosen = who.routed is not None and not who.fallback
            self.tally.add(who.ref, name, routed=chosen, fallback=who.fallback, confidence=sure)
            request.future.set_result(who.prediction(request, answer))

        self.rows.answer([row for _, _, row in resolved], give)

    def _resolved(
        self, requests: Sequence[AnswerRequest], failed: list[tuple[AnswerRequest, Exception]]
    ) -> Iterator[tuple[AnswerRequest, Resolved]]:
        """Who answers each request; those that cannot be answered get their error, and no other does."""
        asked: dict[tuple[str, ...], list[AnswerRequest]] = {}
        for request in requests:
            try:
                request.check()
                among = open_tasks(self.view, request.task, request.adapter, free=request.writes)
                asked.setdefault(tuple(among), []).append(request)
            except Exception as error:
                failed.append((request, error))
        known: list[tuple[AnswerRequest, Routed | None]] = [(request, None) for request in asked.pop((), [])]
        parts = list(asked.items())
        while parts:
            tasks, part = parts.pop(0)
            try:
                routed = self.decider.decide(self.view, [r.example for r in part], max(r.top_k for r in part), tasks)
            except Exception as error:
                if len(part) == 1:
                    failed.append((part[0], error))
                else:  # one text that cannot be read must not fail those beside it
                    half = len(part) // 2
                    parts += [(tasks, part[:half]), (tasks, part[half:])]
                continue
            for request, found in zip(part, routed, strict=True):
                forced = not request.fallback or request.adapter is not None
                known.append((request, narrowed(found, request.top_k, forced)))
        for request, routing in known:
            try:
                yield request, resolve(self.view, request, routing)
            except Exception as error:
                failed.append((request, error))

    def _what_answers(self) -> AnswersRows:
        """The base of this process, or the vLLM that the settings name.

        Raises:
            UsageError: the package that asks a vLLM is not installed, or a vLLM cannot answer for this base.
            EngineError: the vLLM cannot be asked, or its base is another one.
        """
        settings = self.settings
        if settings.engine == BUILT_IN:
            return LocalRows(self.base, self.bank, settings, self.halt.is_set)
        try:
            from adapterhub_cl.remote.vllm_rows import VllmRows
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--engine URL needs the package {error.name}, which is not installed",
                "pip install 'adapterhub-cl[serve]'",
            ) from error
        return VllmRows(
            self.registry,
            self.base,
            self.bank,
            settings.engine,
            most=settings.resident,
            timeout_s=settings.timeout_s,
            max_length=settings.max_length,
            halt=self.halt.is_set,
        )

    def _read(self, ref: str) -> Shelved:
        record = self.registry.get(ref)
        self.registry.check_files(record)
        try:
            return read_adapter(record.path, self.base.dtype)
        except AdapterError as error:
            alone = f"it can answer alone: --adapter {ref}, or --task; with an engine open, in another process"
            raise AdapterError(f"{ref}: {error.message}", alone if is_dora(record.path) else error.hint) from error


def _fail(requests: Sequence[AnswerRequest], error: BaseException) -> None:
    """Give an error to all who still wait."""
    for request in requests:
        if not request.future.done():
            request.future.set_exception(error)
