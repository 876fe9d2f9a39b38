"""Learning: tasks, updates, streams, and what they made the hub forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.launching import one_process
from adapterhub_cl.progress import Reporter, usual
from adapterhub_cl.showing import Listing
from adapterhub_cl.types import AdapterRecord

if TYPE_CHECKING:
    from adapterhub_cl.evaluation.gate import Decision, Effect
    from adapterhub_cl.evaluation.matrix import AccuracyMatrix


class Learning(OpenedHub):
    """The verbs that teach a hub."""

    def add_task(
        self,
        name: str,
        data: str | Path | None = None,
        *,
        eval: str | Path | None = None,  # noqa: A002 (the flag's name)
        strategy: str = "isolated",
        options: Mapping[str, Any] | None = None,
        on_top_of: str | None = None,
        replay: str = "balanced:200",
        augment: str = "",
        max_forgetting: float | None = None,
        columns: Mapping[str, str] | None = None,
        kind: str = "auto",
        labels: Sequence[str] = (),
        instruction: str | None = None,
        prompt_format: str | None = None,
        metric: str | None = None,
        log_with: str = "",
        resume: bool = False,
        reporter: Reporter | None = None,
        **settings: Any,
    ) -> AdapterRecord:
        """Train a new adapter on the frozen base, keep replay samples, evaluate, record.

        Args:
            data: a file (JSONL, JSON, CSV, TSV, Parquet, text), a saved dataset, a hub dataset id, or `-` for stdin.
            eval: held-out data that the finished adapter is scored on; never used to choose anything.
            strategy: how training treats the past: a name of `adapterhub_cl.strategies`, or several with `+` between.
            options: of the strategy: `{"replay.ratio": 0.5}`.
            on_top_of: a version that stays active and frozen under the new adapter; what is stored is their sum.
            augment: what is made of the training data besides: `swap:2`, several with commas between.
            max_forgetting: what an earlier task that the new version answers for may lose (absolute); default: the
                hub's, 0.02 unless its hub.toml says otherwise; 1 lets everything pass.
            replay: which examples are kept, `POLICY:SIZE`, or `none`.
            columns: role (`input`, `output`, `instruction`) → column, where the layout is not recognised.
            kind: `choice`, `generation`, `text`, or `auto`.
            labels: the answers of a choice task; default: those in the data.
            instruction: for inputs that come without one.
            prompt_format: a name, or a template with `{instruction}` and `{input}`.
            log_with: a tracker that Accelerate knows, such as `tensorboard`.
            resume: continue the newest unfinished run of this name; everything else is as it was started.
            settings: fields of `TrainingSettings`: `epochs`, `rank`, `learning_rate`, `seed`, …

        Raises:
            GateRefused: it forgets too much; the version (`error.record`) is kept as rejected, nothing was moved.
            AdapterHubError: any of its kinds; the hub is as it was before.
        """
        return self._teach(
            "add-task",
            name,
            data,
            resume,
            reporter,
            eval=eval,
            strategy=strategy,
            options=dict(options or {}),
            on_top_of=on_top_of,
            replay=replay,
            augment=augment,
            max_forgetting=max_forgetting,
            columns=dict(columns or {}),
            kind=kind,
            labels=tuple(labels),
            instruction=instruction,
            prompt_format=prompt_format,
            metric=metric,
            log_with=log_with,
            settings=settings,
        )

    def update(
        self,
        name: str,
        data: str | Path | None = None,
        *,
        eval: str | Path | None = None,  # noqa: A002 (the flag's name)
        strategy: str | None = None,
        options: Mapping[str, Any] | None = None,
        replay: str | None = None,
        augment: str = "",
        max_forgetting: float | None = None,
        columns: Mapping[str, str] | None = None,
        instruction: str | None = None,
        log_with: str = "",
        resume: bool = False,
        reporter: Reporter | None = None,
        **settings: Any,
    ) -> AdapterRecord:
        """A new version from new data of a known task, or from raw text: it starts from the old version's weights,
        with the old version's replay samples mixed in. Arguments as in `add_task`; `replay` as the old version has it.
        The strategy is `sequential`, and for raw text on an encoder `lwf`, unless another one is named.

        Scored besides: `recall` of the new data, `retention` of the old samples (score after ÷ before), `locality`
        (share of answers to other tasks' samples that are unchanged).

        Raises:
            UnknownNameError: no such adapter.
            GateRefused: it forgets too much; the version (`error.record`) is kept as rejected, nothing was moved.
            AdapterHubError: any of its kinds; the hub is as it was before.
        """
        return self._teach(
            "update",
            name,
            data,
            resume,
            reporter,
            eval=eval,
            strategy=strategy,
            options=dict(options or {}),
            replay=replay,
            augment=augment,
            max_forgetting=max_forgetting,
            columns=dict(columns or {}),
            instruction=instruction,
            log_with=log_with,
            settings=settings,
        )

    def _teach(
        self, verb: str, name: str, data: str | Path | None, resume: bool, reporter: Reporter | None, **asked: Any
    ) -> AdapterRecord:
        from adapterhub_cl.learning.request import build

        request, run = build(self.registry, verb, name, data, resume, asked)
        from adapterhub_cl.learning.teaching import teach

        return teach(self.registry, self.load_base, request, run=run, reporter=usual(reporter))

    def update_online(
        self,
        name: str,
        lines: TextIO | None = None,
        *,
        every: int = 100,
        eval: str | Path | None = None,  # noqa: A002 (the flag's name)
        strategy: str = "replay",
        options: Mapping[str, Any] | None = None,
        replay: str | None = None,
        max_forgetting: float | None = None,
        columns: Mapping[str, str] | None = None,
        instruction: str | None = None,
        resume: bool = False,
        reporter: Reporter | None = None,
        **settings: Any,
    ) -> list[AdapterRecord]:
        """Learn rows as they come, in small steps with replay; a version every `every` rows and one at the end.

        Each batch is learned `epochs` times (2 unless given) at a third of an update's learning rate, then the next
        is waited for. Rows are written to the run's folder as they are read; after a crash, `resume` learns those
        again that no accepted version holds yet, and goes on with the input. Ctrl-C ends the input.

        Args:
            lines: JSON objects, one a line; default: standard input.
            every: rows in a version.
            resume: go on with the newest unfinished run of this name; everything but `max_forgetting` is as it was
                started.

        Returns:
            the versions that were published.

        Raises:
            GateRefused: a version forgot too much; the rows that came in stay in the run's folder.
        """
        from adapterhub_cl.learning import online
        from adapterhub_cl.learning.request import build

        asked = {
            "eval": eval,
            "strategy": strategy,
            "options": dict(options or {}),
            "replay": replay,
            "max_forgetting": max_forgetting,
            "columns": dict(columns or {}),
            "instruction": instruction,
            "settings": {"epochs": 2, "batch_size": 8, **settings},
        }
        tell = usual(reporter)
        source = online.standard_input() if lines is None else lines
        request, _ = build(self.registry, "update", name, "-", False, asked)
        run, request = online.begin(self.registry, request, every, resume, tell)
        return online.learn_online(self.registry, self.load_base, request, run, source, tell)

    def stream(
        self,
        file: str | Path,
        *,
        strategies: Sequence[str] = ("isolated",),
        seeds: Sequence[int] = (0,),
        options: Mapping[str, Any] | None = None,
        max_forgetting: float = 1.0,
        reporter: Reporter | None = None,
        asked: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> list[AccuracyMatrix]:
        """Teach a sequence of tasks, one after another, and measure every task after each.

        One strategy and one seed teach this hub. Several are compared: each runs in a hub of its own under
        `streams/` in this hub's directory, and this hub is not changed. The same call goes on where it was stopped.

        Args:
            file: YAML or JSON: `tasks:` a list of `{name, data, eval, …options of add_task}`.
            strategies: names, or names with `+` between.
            options: of the strategies: `{"replay.ratio": 0.5}`; each takes its own.
            max_forgetting: see `add_task`; by default nothing is refused.
            asked: further arguments of `add_task` for every task, such as `replay`; the file's win.
            settings: fields of `TrainingSettings` for every task; the file's win.

        Returns:
            one accuracy matrix for each strategy and seed.

        Raises:
            DataError: the file, or data that it names, cannot be used; everything that is wrong in one message.
            GateRefused: a stage forgot too much; the stages before it stay.
        """
        one_process("stream")
        from adapterhub_cl.learning.comparing import run_all

        return Listing(
            run_all(
                self.registry,
                self.load_base,
                file,
                strategies,
                seeds,
                options or {},
                max_forgetting,
                settings,
                asked or {},
                usual(reporter),
            )
        )

    def promote(
        self, ref: str, *, max_forgetting: float | None = None, reporter: Reporter | None = None
    ) -> tuple[AdapterRecord, Decision]:
        """Let a version serve its tasks (alias `production`), if it passes the gate.

        Returns:
            the version, and what the gate measured.

        Raises:
            GateRefused: a task would lose more than it may; nothing was moved.
        """
        from adapterhub_cl.evaluation.promoting import promote

        return promote(self.registry, self.load_base, ref, max_forgetting, usual(reporter))

    def forgetting(self, ref: str, *, reporter: Reporter | None = None) -> tuple[AdapterRecord, list[Effect]]:
        """A version's effect on every other task: what serves the task scores, and what this version scores on it.

        `Effect.served` says whether the version answers for the task, or would only do so if it were made to.
        """
        from adapterhub_cl.evaluation.promoting import forgetting_of

        return forgetting_of(self.registry, self.load_base, ref, usual(reporter))
