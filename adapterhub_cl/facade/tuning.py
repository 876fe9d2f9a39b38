"""Tuning: the training settings of a task, searched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from adapterhub_cl.errors import UsageError
from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.launching import one_process
from adapterhub_cl.learning.train_options import AddTaskOptions
from adapterhub_cl.options import from_mapping, given_of, options_of, takes
from adapterhub_cl.progress import Reporter
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.spreading.spread_options import SpreadOptions
from adapterhub_cl.tuning.tune_options import NOT_SHOWN, UNUSED, TuneOptions

if TYPE_CHECKING:
    from adapterhub_cl.tuning.tune_search import TunePlan


class Tuning(OpenedHub):
    """The verb that searches training settings."""

    @overload
    def tune(self, name: str, data: str | Path | None = None, *, dry_run: Literal[True], **asked: Any) -> TunePlan: ...

    @overload
    def tune(
        self, name: str, data: str | Path | None = None, *, dry_run: Literal[False] = False, **asked: Any
    ) -> dict[str, Any]: ...

    @takes(TuneOptions, SpreadOptions, AddTaskOptions, TrainingSettings, hidden=NOT_SHOWN)
    def tune(
        self,
        name: str,
        data: str | Path | None = None,
        *,
        resume: bool = False,
        dry_run: bool = False,
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> dict[str, Any] | TunePlan:
        """Search rank, learning rate, epochs, target modules and, if asked, prompt formats, on rows held out.

        Settings that are given are fixed. The first trial has the defaults; the best trial's settings become the
        defaults of later `add_task` and `update` of this name if they beat those by more than chance on further rows,
        with other seeds. No version is made.

        Args:
            name: of the task.
            data: as in `add_task`.
            resume: go on with the newest unfinished search of this name; everything else is as it was started.
            dry_run: write nothing and return a `TunePlan`: what would be searched, and on which rows.

        Returns:
            what was found and kept: `settings` (empty if the defaults stay), `kept` in words, `trials`, `confirmed`.

        Raises:
            UsageError: Optuna is not installed, or an option that a search does not use was given.
            DataError: the data cannot be used, or have too few rows.
            IntegrityError: a folder stands where what is found would be kept.
            TrainingInterrupted: stopped by the user; the same call with `resume` goes on.
        """
        one_process("tune")
        need_optuna()
        options = from_mapping(TuneOptions, given_of(TuneOptions, asked), "tune")
        self._refuse(asked)
        from adapterhub_cl.learning.chosen_settings import refuse_folder
        from adapterhub_cl.learning.order import order_of
        from adapterhub_cl.learning.request import TrainRequest, build
        from adapterhub_cl.training.runs import Run
        from adapterhub_cl.tuning.tune_search import plan_of, search

        own = {*given_of(TuneOptions, asked), *given_of(SpreadOptions, asked)}
        if resume and (data is not None or set(asked) - (own - {"formats"})):
            raise UsageError(
                "a search that is resumed keeps its data and settings",
                f"cl-adapter tune {name} --resume, with --trials, --minutes or --on at most",
            )
        run = Run.newest(self.registry.runs_dir, "tune", name) if resume else None
        if run is not None:
            request = TrainRequest.from_json({**run.request, "verb": "add-task"})
            options = from_mapping(
                TuneOptions, {**(run.request.get("tune") or {}), **given_of(TuneOptions, asked)}, "tune"
            )
        else:
            mine = {key: value for key, value in asked.items() if key not in own}
            request, _ = build(self.registry, "add-task", name, data, False, mine, tuned=False)
        refuse_folder(self.registry, request.name)
        order = order_of(self.registry, request)
        if order.strategy.makes != "fresh" or order.strategy.trial is not None or order.strategy.what_is_read:
            raise UsageError(
                f"tune searches the settings of an adapter of its own, and {order.strategy.name} makes another",
                "leave --strategy out",
            )
        hub = self.context(reporter)
        if dry_run:
            return plan_of(hub, order, options)
        return search(hub, order, options, run, **given_of(SpreadOptions, asked))

    def tuned(self, name: str) -> dict[str, Any] | None:
        """What `tune` found for a name; None where nothing was tuned.

        Raises:
            IntegrityError: the file is not what was written.
        """
        from adapterhub_cl.learning.chosen_settings import read_choice

        return read_choice(self.registry, name)

    def drop_tuned(self, name: str) -> bool:
        """Go back to the defaults for a name; False where nothing was tuned.

        Raises:
            IntegrityError: a folder stands in the file's place.
        """
        from adapterhub_cl.learning.chosen_settings import drop_choice
        from adapterhub_cl.registry import check_new

        return drop_choice(self.registry, check_new(name))

    def _refuse(self, asked: Mapping[str, Any]) -> None:
        given = given_of(AddTaskOptions, asked)
        if wrong := [key for key in UNUSED if key in given]:
            names = ", ".join(options_of(AddTaskOptions)[key].flag for key in wrong)
            raise UsageError(
                f"tune does not use {names}: it holds out rows of the data itself and makes no version",
                "give it to add-task afterwards",
            )


def need_optuna() -> None:
    """Raise where Optuna is not installed.

    Raises:
        UsageError: says how to install it.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UsageError("tune needs the package optuna", "pip install 'adapterhub-cl[tune]'") from error
