"""Using what was learned: answers, routing, an engine for many requests, drift."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adapterhub_cl import objectives
from adapterhub_cl.adapters.serving import ServingTable, open_tasks, refuse_router, who_answers
from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.progress import Reporter, usual
from adapterhub_cl.routing import DEFAULT as ROUTER
from adapterhub_cl.routing import build
from adapterhub_cl.samples.kept import facts_learned
from adapterhub_cl.showing import Listing
from adapterhub_cl.types import BASE, Example, Prediction, Route

if TYPE_CHECKING:
    from adapterhub_cl.data.layouts import Columns
    from adapterhub_cl.deciding.drift import Drift
    from adapterhub_cl.deciding.scope import FactScope
    from adapterhub_cl.inference.engine import Engine
    from adapterhub_cl.inference.requests import AnswerRequest

Messages = Sequence[Mapping[str, str]]
MANY = 64  # inputs from which a progress bar is worth its place


class Using(OpenedHub):
    """The verbs that answer."""

    def engine(self, router: str | None = ROUTER, *, reporter: Reporter | None = None, **settings: Any) -> Engine:
        """Base and adapters in memory, for requests from any number of threads; use it as a context manager.

        Args:
            router: chooses the task of a request that does not name it: `analytic`, `centroid`, …
            reporter: told when the router is fitted.
            settings: `options` (of the router), `top_k`, `fallback`, `capacity`, `host_bytes`, `batch_size`, `wait_ms`,
                `max_length`; see `adapterhub_cl.inference.engine_settings.Settings`.

        Raises:
            UnknownNameError: no such router or option.
            UsageError: a setting that cannot be used, or an engine works on this hub object already.
        """
        own = {key: value for key, value in (settings.get("options") or {}).items() if not key.startswith("router.")}
        build(router or ROUTER, own)  # a name or option that cannot be used is told before anything is loaded
        from adapterhub_cl.inference.engine import Engine
        from adapterhub_cl.inference.engine_settings import Settings

        for name in settings:
            if name not in Settings.__dataclass_fields__:
                raise UnknownNameError("engine setting", name, Settings.__dataclass_fields__)
        chosen = Settings(router=router or ROUTER, **settings)
        if self._engine is not None and self._engine.closing:
            self._engine.close()  # it may still be answering: two at a time would take the base from each other
        if self._engine is not None and not self._engine.closed:
            raise UsageError("an engine works on this hub object already", "close it, or open the hub once more")
        self._engine = Engine(self.registry, self.load_base(reporter), chosen, usual(reporter))
        return self._engine

    def read_inputs(
        self, source: str, *, columns: Columns | None = None, task: str | None = None, adapter: str | None = None
    ) -> list[Example]:
        """Read a file of inputs by the columns that training read.

        Args:
            source: JSONL, CSV, …; of a `.txt` file every line is an input.
            columns: role → column, where the file has other columns.
            task, adapter: who will be asked; without them the columns of any task that is served are tried.

        Raises:
            DataError: the file cannot be read, or its columns cannot be told.
        """
        from adapterhub_cl.data.columns import read_inputs

        table = ServingTable(self.registry)
        if task is not None or adapter not in (None, BASE):
            named = [who_answers(table, task, adapter)[0]]
        else:
            named = [table.served(name) for name in table.serving]
        layouts = sorted({t.layout for t in named if t and t.layout}, key=lambda one: (-len(one.columns), str(one)))
        return read_inputs(source, columns, layouts=layouts)

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
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        reporter: Reporter | None = None,
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
            max_new_tokens: longest free answer, in tokens; None: what the task's answers need.

        Raises:
            UsageError: the hub has no adapter.
            UnknownNameError: no such task, adapter, router.
            DataError: an input is empty.
        """

        if isinstance(inputs, str):
            raise UsageError("a single text was given, but a list of texts is needed", "write [text]")
        inputs = list(inputs)
        report = usual(reporter) if len(inputs) >= MANY else Reporter()
        if self._routes(task, adapter, router, top_k, options):
            with self._using(router, options, reporter, batch_size=batch_size) as engine:
                engine.prepare()
                with report.piece("predicting", len(inputs)):
                    found = engine.predict(
                        inputs,
                        task=task,
                        adapter=adapter,
                        top_k=top_k,
                        fallback=fallback,
                        progress=report.advance,
                        max_new_tokens=max_new_tokens,
                    )
            return Listing(found)
        from adapterhub_cl.answering.writing import Writing
        from adapterhub_cl.inference.requests import AnswerRequest, examples_of

        writing = Writing(max_new_tokens)
        requests = [AnswerRequest(example, task, adapter, writing=writing) for example in examples_of(inputs)]
        with report.piece("predicting", len(inputs)) as advance:
            return Listing(self._alone(requests, reporter, batch_size=batch_size, progress=advance))

    def generate(self, text: str, **asked: Any) -> str:
        """What the base with an adapter writes after a text; arguments as `write`."""
        return self.write(text, **asked).prediction

    def write(
        self,
        text: str | Messages,
        *,
        task: str | None = None,
        adapter: str | None = None,
        router: str | None = None,
        top_k: int = 1,
        options: Mapping[str, Any] | None = None,
        raw: bool = False,
        emit: Callable[[str], bool] | None = None,
        reporter: Reporter | None = None,
        **writing: Any,
    ) -> Prediction:
        """What is written after a text or a conversation, as `.prediction`, and who wrote it.

        Args:
            text: a text, or messages (`[{"role": "user", "content": …}, …]`): see `Engine.chat`.
            task: whose prompt format and adapter; may be left out: a router finds it.
            adapter: a version, or `base`.
            raw: go on from the text as it is, without the task's prompt format.
            emit: gets the answer piece by piece, and says whether to go on.
            writing: `max_new_tokens` (None: what the task's answers need), `temperature` (0 takes the likeliest token
                each time), `top_p`, `seed`, `stop`.

        Raises:
            DataError: the text is empty, or longer than the context.
            UsageError, UnknownNameError: as `predict`.
        """
        from adapterhub_cl.inference.requests import free_request

        objectives.refuse_writing(self.base, "writing an answer")
        request = free_request(text, task, adapter, top_k, raw, writing)
        request.emit = emit
        if self._routes(task, adapter, router, top_k, options, free=True):
            with self._using(router, options, reporter) as engine:
                return engine.ask(request).result()
        return self._alone([request], reporter)[0]

    def fit_router(
        self, router: str | None = None, *, options: Mapping[str, Any] | None = None, reporter: Reporter | None = None
    ) -> bool:
        """Let a router learn the hub as it is now, so that the next request need not wait for it.

        Returns:
            whether it did: with fewer than two tasks nothing is routed, and nothing is fitted.

        Raises:
            UnknownNameError: no such router or option.
            AdapterError: none of the tasks is one that this router can know.
        """
        if len(self.registry.serving()) < 2:
            return False
        with self._using(router, options, reporter) as engine:
            engine.prepare()
        return True

    def route(
        self,
        inputs: Sequence[str | Example],
        *,
        router: str | None = None,
        top_k: int = 1,
        options: Mapping[str, Any] | None = None,
        explain: int = 0,
        reporter: Reporter | None = None,
    ) -> list[Route]:
        """Which adapters would serve each input, and how sure that is.

        Args:
            explain: also the scores of all tasks, and this many nearest replay samples.

        Raises:
            UsageError: the hub has no adapter.
            AdapterError: none of its tasks is one that this router can know.
            DataError: an input is empty.
        """
        with self._using(router, options, reporter) as engine:
            return Listing(engine.route(inputs, top_k=top_k, explain=explain))

    def subjects(self, ref: str) -> list[str]:
        """What a version's facts are about, as its replay samples name it; empty for a version that did not learn facts
        alone. A question that names one of them is routed to its task, and one that names none is not.

        Raises:
            UnknownNameError: no such version.
            IntegrityError: its samples have changed since they were recorded.
        """
        scope = self.scope(ref)
        return scope.names if scope else []

    def scope(self, ref: str) -> FactScope | None:
        """The `names` of a version's subjects, and whether questions that name none of them are kept away from it
        (`closed`): its replay samples must have the subjects of nearly all of its facts. None for a version that did
        not learn facts alone.

        Raises:
            UnknownNameError: no such version.
            IntegrityError: its samples have changed since they were recorded.
        """
        from adapterhub_cl.deciding.hub_scopes import scope_of

        return scope_of(self.registry.get(ref))

    def drift(
        self,
        inputs: Sequence[str | Example],
        *,
        router: str | None = None,
        options: Mapping[str, Any] | None = None,
        reporter: Reporter | None = None,
    ) -> Drift:
        """Compare inputs with what the router knows: the share out of distribution, clusters among them, and whether
        one looks like a new task.

        Raises:
            UsageError, AdapterError: as `route`; or the router has no notion of what it does not know.
            DataError: an input is empty.
        """
        with self._using(router, options, reporter) as engine:
            return engine.drift(inputs)

    # -- inside ----------------------------------------------------------------------------------

    def _routes(
        self,
        task: str | None,
        adapter: str | None,
        router: str | None,
        top_k: int = 1,
        options: Mapping[str, Any] | None = None,
        *,
        free: bool = False,
    ) -> bool:
        """Whether a router is asked for, or nobody said which of several tasks, or the only task is one of facts.

        Raises:
            UsageError: a router, where a task or a version leaves nothing to route.
        """
        table = ServingTable(self.registry)
        among = open_tasks(table, task, adapter, free=free)
        refuse_router(among, task, router, top_k, options)
        # a question about something else than its facts is not for a task of facts, also where it is the only one
        return router is not None or len(among) > 1 or any(_of_facts(table, name) for name in among)

    @contextmanager
    def _using(
        self, router: str | None, options: Mapping[str, Any] | None, reporter: Reporter | None, **settings: Any
    ) -> Iterator[Engine]:
        """The engine that is at work, or one for this call."""
        working = self._engine
        if working is None or working.closing:
            with self.engine(router or ROUTER, options=options, reporter=reporter, **settings) as engine:
                yield engine
                for note in engine.notes:
                    usual(reporter).note(f"note: {note}")
            return
        if options or router not in (None, working.settings.router):
            raise UsageError(
                f"an engine with the router {working.settings.router} works on this hub object",
                "ask that engine, or close it first",
            )
        yield working

    def _alone(self, requests: Sequence[AnswerRequest], reporter: Reporter | None, **options: Any) -> list[Prediction]:
        """Answers to requests that name the same task or adapter, counted; a hub that cannot be written goes
        uncounted."""
        from adapterhub_cl.inference.requests import answer_alone, resolve
        from adapterhub_cl.inference.tally import Tally

        if not requests:
            return []
        resolved = resolve(ServingTable(self.registry), requests[0])
        found = answer_alone(self.registry, self.load_base(reporter), requests, resolved, **options)
        tally, name = Tally(self.registry), resolved.task.name if resolved.task else ""
        tally.add(resolved.ref, name, routed=False, fallback=False, confidence=0.0, requests=len(found))
        tally.flush()
        return found


def _of_facts(table: ServingTable, task: str) -> bool:
    return bool(facts_learned(table.record(table.server(task))))
