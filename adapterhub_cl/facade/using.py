"""Using what was learned: answers, routing, an engine for many requests, drift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.facade.opened import Opened
from adapterhub_cl.inference.serving import BASE, answering, who_answers
from adapterhub_cl.routing import DEFAULT as ROUTER
from adapterhub_cl.types import Example, Prediction, Route

if TYPE_CHECKING:
    from adapterhub_cl.inference.drift import Drift
    from adapterhub_cl.inference.engine import Engine


class Using(Opened):
    """The verbs that answer."""

    def engine(self, router: str = ROUTER, **settings: Any) -> Engine:
        """Base and adapters in memory, for requests from any number of threads; use it as a context manager.

        Args:
            router: chooses the task of a request that does not name it: `analytic`, `centroid`, …
            settings: `options` (of the router), `top_k`, `fallback`, `capacity`, `host_bytes`, `batch_size`, `wait_ms`,
                `max_length`; see `adapterhub_cl.inference._settings.Settings`.

        Raises:
            UnknownNameError: no such router or option.
            UsageError: a setting that cannot be used, or an engine works on this hub object already.
        """
        from adapterhub_cl.inference._settings import Settings
        from adapterhub_cl.inference.engine import Engine

        chosen = Settings(router=router, **settings)
        if self._engine is not None and not self._engine.closed:
            raise UsageError("an engine works on this hub object already", "close it, or open the hub once more")
        self._engine = Engine(self.registry, self.load_base(), chosen)
        return self._engine

    def predict(
        self,
        inputs: Sequence[str | Example],
        *,
        task: str | None = None,
        adapter: str | None = None,
        router: str | None = None,
        top_k: int = 1,
        options: Mapping[str, Any] | None = None,
        fallback: bool = True,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        progress: Any = None,
    ) -> list[Prediction]:
        """Answers, in order.

        Args:
            task: its serving adapter answers; may be left out: a router finds each input's task, in a hub with one
                task that one answers.
            adapter: this version answers, or `base` for the base alone (with the task's prompt and labels).
            router: which one; default `analytic`.
            top_k: mix the adapters of up to this many tasks by the router's weights.
            options: of the router.
            fallback: let the base answer what is out of distribution.
            progress: called with the number of inputs done.

        Raises:
            UsageError: the hub has no adapter.
            UnknownNameError: no such task, adapter, router.
            DataError: an input is empty.
        """
        from adapterhub_cl.data.values import whole_characters

        self._check_router(router, task)
        if router is None and not self._open_question(task, adapter):
            from adapterhub_cl import objectives
            from adapterhub_cl.inference.answering import answer

            chosen, ref = who_answers(self.registry, task, adapter)
            examples = [Example(whole_characters(i)) if isinstance(i, str) else i for i in inputs]
            with answering(self.registry, self.load_base(), ref) as model:
                found = answer(
                    model,
                    self.load_base(),
                    objectives.ROOM.get("causal_lm")(),
                    chosen,
                    examples,
                    ref,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    progress=progress,
                )
            self._count(ref, chosen.name, len(found))
            return found
        with self._using(router, options, fallback=fallback, batch_size=batch_size) as engine:
            return engine.predict(
                inputs, task=task, adapter=adapter, top_k=top_k, progress=progress, max_new_tokens=max_new_tokens
            )

    def generate(
        self,
        text: str,
        *,
        task: str | None = None,
        adapter: str | None = None,
        router: str | None = None,
        raw: bool = False,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        streamer: Any = None,
    ) -> str:
        """What the base with an adapter writes.

        Args:
            task: whose prompt format and adapter; may be left out: a router finds it.
            adapter: a version, or `base`.
            raw: go on from the text as it is, without the task's prompt format.
            temperature: 0 takes the likeliest token each time.
            streamer: a transformers streamer, where task or adapter are named; else see `Engine.stream`.
        """
        from adapterhub_cl.inference.answering import continue_text

        self._check_router(router, task)
        if router is not None or (adapter != BASE and self._open_question(task, adapter)):
            with self._using(router, None) as engine:
                return engine.generate(
                    text,
                    task=task,
                    adapter=adapter,
                    raw=raw,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=seed,
                ).prediction
        if adapter == BASE and task is None:
            chosen, ref = None, BASE
        else:
            chosen, ref = who_answers(self.registry, task, adapter)
        with answering(self.registry, self.load_base(), ref) as model:
            written = continue_text(
                model,
                self.load_base(),
                text,
                task=None if raw else chosen,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                streamer=streamer,
            )
        self._count(ref, chosen.name if chosen else "", 1)
        return written

    def route(
        self,
        inputs: Sequence[str | Example],
        *,
        router: str | None = None,
        top_k: int = 1,
        options: Mapping[str, Any] | None = None,
        explain: int = 0,
    ) -> list[Route]:
        """Which adapters would serve each input, and how sure that is.

        Args:
            explain: also the scores of all tasks, and this many nearest replay samples.

        Raises:
            UsageError: the hub has no adapter, or none that this router can know.
            DataError: an input is empty.
        """
        with self._using(router, options) as engine:
            return engine.route(inputs, top_k=top_k, explain=explain)

    def drift(
        self,
        inputs: Sequence[str | Example],
        *,
        router: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Drift:
        """Compare inputs with what the router knows: the share out of distribution, clusters among them, and whether
        one looks like a new task.

        Raises:
            UsageError: as `route`; or the router has no notion of what it does not know.
            DataError: an input is empty.
        """
        with self._using(router, options) as engine:
            return engine.drift(inputs)

    # -- inside ----------------------------------------------------------------------------------

    def _open_question(self, task: str | None, adapter: str | None) -> bool:
        """Whether nobody said which of several tasks."""
        if task is not None:
            return False
        if adapter is not None and adapter != BASE:
            record = self.registry.get(adapter)
            return not record.task and len(record.tasks) > 1
        return len(self.registry.serving()) > 1

    @staticmethod
    def _check_router(router: str | None, task: str | None) -> None:
        if router is not None and task is not None:
            raise UsageError("both a task and a router", "--task names the task, so that nothing is left to route")

    @contextmanager
    def _using(self, router: str | None, options: Mapping[str, Any] | None, **settings: Any) -> Iterator[Engine]:
        """The engine that is at work, or one for this call."""
        working = self._engine
        if working is None or working.closed:
            with self.engine(router or ROUTER, options=options, **settings) as engine:
                yield engine
            return
        if options or router not in (None, working.settings.router):
            raise UsageError(
                f"an engine with the router {working.settings.router} works on this hub object",
                "ask that engine, or close it first",
            )
        yield working

    def _count(self, ref: str, task: str, requests: int) -> None:
        """Count answered requests; a hub that cannot be written goes uncounted."""
        from adapterhub_cl.inference._tally import Tally

        tally = Tally(self.registry)
        tally.add(ref, task, routed=False, fallback=False, confidence=0.0, requests=requests)
        tally.flush()
