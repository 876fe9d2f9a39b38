"""Learning: tasks, updates, streams, and what they made the hub forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, overload

from adapterhub_cl.errors import UsageError
from adapterhub_cl.evaluation.general_options import GeneralOptions
from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.launching import one_leads, one_process
from adapterhub_cl.learning.train_options import AddTaskOptions, OnlineOptions, UpdateOptions
from adapterhub_cl.options import from_mapping, given_of, parse_set, takes
from adapterhub_cl.progress import Reporter
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.showing import Listing
from adapterhub_cl.spreading.spread_options import SpreadOptions
from adapterhub_cl.types import AdapterRecord

if TYPE_CHECKING:
    from adapterhub_cl.evaluation.gate import Decision, Effect
    from adapterhub_cl.evaluation.matrix import AccuracyMatrix
    from adapterhub_cl.learning.teaching import TrainingPlan


def _matrices(packed: Sequence[Mapping[str, Any]], *_: Any, **__: Any) -> list[AccuracyMatrix]:
    """What another process has measured."""
    from adapterhub_cl.evaluation.matrix import AccuracyMatrix

    return Listing(AccuracyMatrix.from_json(row) for row in packed)


class Learning(OpenedHub):
    """The verbs that teach a hub."""

    @overload
    def add_task(
        self, name: str, data: str | Path | None = None, *, dry_run: Literal[True], **asked: Any
    ) -> TrainingPlan: ...

    @overload
    def add_task(
        self, name: str, data: str | Path | None = None, *, dry_run: Literal[False] = False, **asked: Any
    ) -> AdapterRecord: ...

    @takes(AddTaskOptions, TrainingSettings)
    def add_task(
        self,
        name: str,
        data: str | Path | None = None,
        *,
        resume: bool = False,
        dry_run: bool = False,
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> AdapterRecord | TrainingPlan:
        """Train a new adapter on the frozen base, keep replay samples, evaluate, record.

        Args:
            name: of the task and of the adapter.
            data: a file (JSONL, JSON, CSV, TSV, Parquet, text), a saved dataset, a hub dataset id, or `-` for stdin.
            resume: continue the newest unfinished run of this name, with its settings; others cannot be given.
            dry_run: write nothing and return a `TrainingPlan`: rows, steps, how the run would compute and what memory
                it would take. The base is loaded and the data are read.

        Raises:
            GateRefused: it forgets too much; the version (`error.record`) is kept as rejected, nothing was moved. With
                `forecast` the training may be stopped early for it; then no version was made, and `error.gate` has the
                forecast.
            AdapterHubError: any of its kinds; the hub is as it was before.
        """
        if dry_run:
            return self._plan(name, data, resume, reporter, asked)
        return self._teach("add-task", name, data, resume, reporter, asked)

    def _plan(
        self, name: str, data: str | Path | None, resume: bool, reporter: Reporter | None, asked: Mapping[str, Any]
    ) -> TrainingPlan:
        from adapterhub_cl.learning.order import order_of
        from adapterhub_cl.learning.request import build

        if resume:
            raise UsageError("a run that is resumed has its plan already", "leave out --dry-run or --resume")
        if asked.get("forecast"):
            raise UsageError(
                "--dry-run trains nothing, and --forecast needs the first steps of the training",
                "leave --dry-run out: the forecast stops the training itself if the gate will refuse it",
            )
        request, _ = build(self.registry, "add-task", name, data, False, asked)
        order = order_of(self.registry, request)
        from adapterhub_cl.learning.teaching import plan

        return plan(self.context(reporter), order)

    @takes(UpdateOptions, TrainingSettings, strategy=None, replay=None)
    def update(
        self,
        name: str,
        data: str | Path | None = None,
        *,
        resume: bool = False,
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> AdapterRecord:
        """A new version from new data of a known task, or from raw text: it starts from the old version's weights,
        with the old version's replay samples mixed in. The strategy is `sequential`, and for raw text on an encoder
        `lwf`, unless another one is named; `replay` is as the old version has it.

        It is also scored by `recall` of the new data, `retention` of the old samples (score after ÷ before) and
        `locality` (share of answers to other tasks' samples that are unchanged).

        Args:
            name: the adapter to update.
            data: as in `add_task`.
            resume: continue the newest unfinished run of this name, with its settings; others cannot be given.

        Raises:
            UnknownNameError: no such adapter.
            GateRefused: it forgets too much; the version (`error.record`) is kept as rejected, nothing was moved.
            AdapterHubError: any of its kinds; the hub is as it was before.
        """
        return self._teach("update", name, data, resume, reporter, asked)

    def _teach(
        self,
        verb: str,
        name: str,
        data: str | Path | None,
        resume: bool,
        reporter: Reporter | None,
        asked: Mapping[str, Any],
    ) -> AdapterRecord:
        from adapterhub_cl.learning.order import finished, order_of
        from adapterhub_cl.learning.request import build

        request, run = build(self.registry, verb, name, data, resume, asked)
        hub = self.context(reporter)
        if run is not None and (done := finished(self.registry, request, run, hub.reporter)) is not None:
            return done
        order = order_of(self.registry, request)
        from adapterhub_cl.learning.teaching import teach

        return teach(hub, order, run=run)

    @takes(OnlineOptions, TrainingSettings, strategy="replay", replay=None, epochs=2, batch_size=8)
    def update_online(
        self,
        name: str,
        lines: TextIO | None = None,
        *,
        every: int = 100,
        resume: bool = False,
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> list[AdapterRecord]:
        """Learn rows as they come, in small steps with replay; a version every `every` rows and one at the end.

        Each batch is learned `epochs` times (2 unless given) at a third of an update's learning rate, then the next
        is waited for. Rows are written to the run's folder as they are read; after a crash, `resume` learns those
        again that no accepted version holds yet, and goes on with the input. Ctrl-C ends the input.

        Args:
            name: the adapter to update.
            lines: JSON objects, one a line; default: standard input.
            every: rows in a version.
            resume: continue the newest unfinished run of this name; everything but `max_forgetting` is as it was
                started.

        Returns:
            the versions that were published.

        Raises:
            GateRefused: a version forgot too much; the rows that came in stay in the run's folder.
        """
        from adapterhub_cl.learning import online
        from adapterhub_cl.learning.request import build

        one_process("--online")
        asked = {"strategy": "replay", "epochs": 2, "batch_size": 8, **asked}
        hub = self.context(reporter)
        source = online.standard_input() if lines is None else lines
        request, _ = build(self.registry, "update", name, "-", False, asked)
        run, order = online.begin(hub, request, every, resume)
        return online.learn_online(hub, order, run, source)

    @takes(SpreadOptions, AddTaskOptions, TrainingSettings, stream=True)
    @one_leads(lambda found: [matrix.to_json() for matrix in found], _matrices)
    def stream(
        self,
        file: str | Path,
        *,
        strategies: Sequence[str] = ("isolated",),
        seeds: Sequence[int] = (0,),
        options: Mapping[str, Any] | None = None,
        max_forgetting: float = 1.0,
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> list[AccuracyMatrix]:
        """Teach a sequence of tasks, one after another, and measure every task after each.

        One strategy and one seed teach this hub. Several are compared: each runs in a hub of its own under
        `streams/` in this hub's directory, and this hub is not changed. The same call goes on where it was stopped.

        The options of `add_task` hold for every task; the file's win.

        Args:
            file: YAML or JSON: `tasks:` a list of `{name, data, eval, …options of add_task}`.
            strategies: names, or names with `+` between.
            seeds: one run for each strategy and seed.
            options: of the strategies: `{"replay.ratio": 0.5}`; each takes its own.
            max_forgetting: see `add_task`; by default nothing is refused.

        Returns:
            one accuracy matrix for each strategy and seed.

        Raises:
            DataError: the file, or data that it names, cannot be used; everything that is wrong in one message.
            GateRefused: a stage forgot too much; the stages before it stay.
        """
        from adapterhub_cl.learning.comparing import run_all

        return Listing(
            run_all(
                self.context(reporter),
                file,
                strategies,
                seeds,
                parse_set(options or {}),
                max_forgetting,
                given_of(TrainingSettings, asked),
                given_of(AddTaskOptions, asked),
                **given_of(SpreadOptions, asked),
            )
        )

    @takes(GeneralOptions)
    def promote(
        self, ref: str, *, max_forgetting: float | None = None, reporter: Reporter | None = None, **asked: Any
    ) -> tuple[AdapterRecord, Decision]:
        """Let a version serve its tasks (alias `production`), if it passes the gate.

        Returns:
            the version, and what the gate measured.

        Raises:
            GateRefused: a task would lose more than it may; nothing was moved.
        """
        from adapterhub_cl.evaluation.promoting import promote

        return promote(self.context(reporter), ref, max_forgetting, from_mapping(GeneralOptions, asked, "promote"))

    def forgetting(self, ref: str, *, reporter: Reporter | None = None) -> tuple[AdapterRecord, list[Effect]]:
        """A version's effect on every other task: what serves the task scores, and what this version scores on it.

        `Effect.served` says whether the version answers for the task, or would only do so if it were made to.
        """
        from adapterhub_cl.evaluation.promoting import forgetting_of

        return forgetting_of(self.context(reporter), ref)
