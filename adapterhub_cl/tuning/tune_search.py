"""The search: trials on one loaded base or on the workers of a Ray cluster, pruned and resumable, and a confirmation on
rows of its own.

Rows are divided three ways. Trials train on the first part and are judged on the second, drawn by Optuna's TPE
(Bergstra et al. 2011) with median pruning (Golovin et al. 2017) after each epoch. The best of many trials is partly
luck, so the third part is read only at the end: the best settings and the defaults are trained again with other seeds
on the first two parts, and compared there row by row. Only a lead beyond chance makes them the task's defaults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adapterhub_cl import objectives
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import DataError, IntegrityError, TrainingError, TrainingInterrupted, UsageError
from adapterhub_cl.learning.chosen_settings import in_words, settings_of, write_choice
from adapterhub_cl.learning.material import Material
from adapterhub_cl.learning.order import TrainOrder
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.spreading.spread_options import LOCAL
from adapterhub_cl.strategies.kin import lead
from adapterhub_cl.training.runs import Run, leave
from adapterhub_cl.tuning.study_file import opened_study
from adapterhub_cl.tuning.tune_options import TuneOptions
from adapterhub_cl.tuning.tune_parts import MOST, Parts, parts_of
from adapterhub_cl.tuning.tune_space import Space, space_of
from adapterhub_cl.tuning.tune_trials import in_format, row_scores, trained

if TYPE_CHECKING:
    import optuna

SURE = 1.645  # standard errors that the best settings must lead by: one-sided 95 %


@dataclass(frozen=True)
class TunePlan:
    """What a search would do.

    Attributes:
        default: the settings of the first trial.
        searched: setting → its values, or the ends of its range.
        rows: to train on; `judged` for the trials, `confirmed` for the confirmation.
    """

    name: str
    trials: int
    default: dict[str, Any]
    searched: dict[str, list[Any]]
    rows: int
    judged: int
    confirmed: int


@dataclass(frozen=True)
class Confirmation:
    """A training that confirms the best settings or the defaults.

    Attributes:
        key: under which its scores are kept in the study.
        which: `best` or `default`.
    """

    key: str
    which: str
    settings: Mapping[str, Any]


def defaults_of(hub: Hub, order: TrainOrder, material: Material) -> TrainingSettings:
    """The order's settings with a number of epochs and a learning rate, as a training would choose them."""
    base, settings, rows = hub.base, order.settings, len(material.data)
    fresh = settings.for_rows(rows, fresh=material.task.kind, encoder=base.is_encoder)
    return replace(settings, epochs=fresh.passes, learning_rate=settings.peak_rate(base.width, encoder=base.is_encoder))


def checked_space(hub: Hub, order: TrainOrder, options: TuneOptions, material: Material) -> Space:
    """What is searched.

    Raises:
        UsageError: modules that match no layer of the base, or a prompt format that these rows cannot have.
    """
    settings, task = defaults_of(hub, order, material), material.task
    objective = objectives.of(hub.registry.base)
    with new_adapter(hub.base, settings, objective.task_type, tasks=[task]):
        pass  # it can be made
    if options.formats:
        objectives.refuse_writing(hub.registry.base, "--formats")
    if options.formats and (task.kind == "text" or task.talks):
        what = "a conversation is written by the chat template" if task.talks else "raw text has no prompt"
        raise UsageError(f"--formats: {what}, so there is nothing to try", "leave --formats out")
    for one in options.formats:
        asked = in_format(hub, material, order, one).task
        objective.tokeniser(hub.base.tokenizer, asked, task.max_length)(material.data.examples[0])
    return space_of(hub.base, settings, order.request.settings, (task.prompt_format, *options.formats))


def plan_of(hub: Hub, order: TrainOrder, options: TuneOptions) -> TunePlan:
    """What `search` would do; nothing is written."""
    parts = parts_of(hub, order)
    space = checked_space(hub, order, options, parts.material)
    judged = min(MOST, int(parts.share * len(parts.material.data)))
    return TunePlan(
        order.request.name,
        options.trials,
        dict(space.default),
        space.describe(),
        len(parts.material.data) - judged,
        judged,
        len(parts.confirmed),
    )


def search(hub: Hub, order: TrainOrder, options: TuneOptions, run: Run | None, on: str = LOCAL) -> dict[str, Any]:
    """Try settings, confirm the best, and keep what was found as the defaults of the name.

    Args:
        run: a search to go on with; None begins one.
        on: see `SpreadOptions`.

    Returns:
        what `learning.chosen_settings.read_choice` reads.

    Raises:
        DataError: the data cannot be used, have changed, or are too few.
        TrainingInterrupted: stopped by the user; the same command with `--resume` goes on.
        StorageError: the disk is full or read-only.
        IntegrityError: the file of the search that should go on is damaged.
    """
    parts, request = parts_of(hub, order), order.request
    sha256 = parts.material.data.sha256
    if run is not None and run.request.get("sha256") != sha256:
        raise DataError(f"{request.data} has changed since the search began", "restore it, or start again")
    if run is None:
        row = {**request.to_json(), "verb": "tune", "created_at": datetime.now(UTC).isoformat(), "sha256": sha256}
        run = Run.start(hub.registry.runs_dir, {**row, "tune": vars(options)})
    lock = run.lock()
    try:
        run.claim()
        with storage_errors(run.path), opened_study(run, request.name, order.settings.seed) as study:
            made = Search(hub, order, options, parts, study)
            if on == LOCAL:
                found = made()
            else:
                from adapterhub_cl.tuning.tune_on_ray import search_on_ray

                found = search_on_ray(made, run.path)
        write_choice(hub.registry, request.name, found)
    except BaseException as error:
        hopeless = isinstance(error, UsageError | DataError) or type(error) is TrainingError
        leave(run, error, f"cl-adapter tune {request.name} --resume", "" if hopeless else "what was tried so far")
        raise
    finally:
        lock.release()
    run.remove()
    hub.registry.add_event("tune", "", {"name": request.name, "kept": found["kept"], "settings": found["settings"]})
    return found


class Search:
    """A search and what it knows; calling it tries, confirms and tells what was found.

    Attributes:
        parts: the rows, `study` the trials so far, `space` what is searched.
    """

    def __init__(self, hub: Hub, order: TrainOrder, options: TuneOptions, parts: Parts, study: optuna.Study) -> None:
        self.hub, self.order, self.options, self.parts, self.study = hub, order, options, parts, study
        self.settings = defaults_of(hub, order, parts.material)
        self.space: Space = checked_space(hub, order, options, parts.material)
        if not self.space.default:
            raise UsageError("every setting that is searched was given", "leave --rank or --learning-rate out")

    def __call__(self) -> dict[str, Any]:
        self.begin()
        with self.hub.reporter.piece("trials", self.options.trials) as advance:
            advance(self.done())
            while self.more(self.done()):
                self._one()
                advance(1)
        return self.outcome(self._measured)

    def begin(self) -> None:
        """Put the defaults, and the trials that were killed, before all others."""
        import optuna

        study, states = self.study, optuna.trial.TrialState
        self.started = time.monotonic()
        for trial in study.trials:
            if trial.state == states.RUNNING:  # the process was killed
                study.tell(trial.number, state=states.FAIL)
                study.enqueue_trial(trial.params or dict(self.space.default))
        if not study.trials:
            study.enqueue_trial(dict(self.space.default))
            if earlier := {k: v for k, v in self._earlier().items() if k in self.space.default}:
                study.enqueue_trial({**self.space.default, **earlier})

    def _earlier(self) -> dict[str, Any]:
        """What an earlier search kept for this name; it is tried again, and replaced by what this one finds."""
        try:
            return settings_of(self.hub.registry, self.order.request.name)
        except IntegrityError:
            return {}

    def more(self, begun: int) -> bool:
        """Whether a further trial is to be begun, after so many."""
        limit = self.options.minutes
        if begun >= self.options.trials:
            return False
        over = limit is not None and time.monotonic() - self.started > 60 * limit
        if over and any(self.is_default(trial.user_attrs["settings"]) for trial in self._ended()):
            minutes = "1 minute is" if limit == 1 else f"{limit:g} minutes are"
            self.hub.reporter.note(f"{minutes} over: no further trial is begun")
            return False
        return True

    def done(self) -> int:
        """How many trials have ended."""
        return len(self._ended())

    def _ended(self) -> list[optuna.trial.FrozenTrial]:
        return [t for t in self.study.get_trials(deepcopy=False) if t.user_attrs.get("ended")]

    def is_default(self, settings: Mapping[str, Any]) -> bool:
        """Whether a trial has the default settings, which are always seen to their end, and must not fail."""
        return dict(settings) == dict(self.space.default)

    def hopeless(self, trial: optuna.Trial, settings: Mapping[str, Any], told: Sequence[Mapping[str, float]]) -> bool:
        """Report a trial's newest figures; whether it is to be ended early."""
        trial.report(value_of(told[-1]), len(told))
        return not self.is_default(settings) and trial.should_prune()

    def _one(self) -> None:
        import optuna

        trial = self.study.ask()
        settings, started = self.space.draw(trial), time.monotonic()
        figures: list[Mapping[str, float]] = []

        def on_epoch(found: Mapping[str, float]) -> None:
            figures.append(dict(found))
            if self.hopeless(trial, settings, figures):
                raise optuna.TrialPruned

        state, reason = "complete", ""
        try:
            held = {**settings, "dev_share": self.parts.share}
            with trained(self.hub, self.order, self.parts.material, held, on_epoch):
                pass
        except optuna.TrialPruned:
            state = "pruned"
        except TrainingInterrupted:
            self.give_up(trial, settings)
            raise
        except TrainingError as error:
            if self.is_default(settings):
                raise
            state, reason = "fail", error.message
        self.ended(trial, settings, figures, state, reason, time.monotonic() - started)

    def give_up(self, trial: optuna.Trial, settings: Mapping[str, Any]) -> None:
        """The user stopped a trial; the next search begins with its settings."""
        import optuna

        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        self.study.enqueue_trial(dict(settings))

    def ended(
        self,
        trial: optuna.Trial,
        settings: Mapping[str, Any],
        figures: Sequence[Mapping[str, float]],
        state: str,
        reason: str,
        seconds: float,
    ) -> None:
        """Write a trial's end into the study.

        Args:
            figures: on the rows that judge, an epoch each.
            state: `complete`, `pruned` or `fail`, with the reason.
        """
        import optuna

        best = max(figures, key=value_of, default={})
        told = {"settings": dict(settings), "figures": best, "epochs_run": len(figures), "reason": reason}
        for key, item in {**told, "seconds": round(seconds, 1), "ended": True}.items():
            trial.set_user_attr(key, item)
        if state == "complete":
            self.study.tell(trial, value_of(best))
        else:
            self.study.tell(trial, state=optuna.trial.TrialState[state.upper()])
        shown = "  ".join(f"{key} {number:.4f}" for key, number in best.items())
        word = {"complete": "", "pruned": "  pruned", "fail": f"  failed: {reason}"}[state]
        self.hub.reporter.note(f"trial {trial.number}: {in_words(settings)}  {shown}{word}")

    def outcome(self, measured: Callable[[Sequence[Confirmation]], None]) -> dict[str, Any]:
        """Confirm the best and tell what was found.

        Args:
            measured: trains what the confirmation needs, and calls `confirmed` with the scores of each.
        """
        import optuna

        complete = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        best = max(complete, key=lambda t: (t.value, -t.number))
        default = next(t for t in complete if self.is_default(t.user_attrs["settings"]))
        chosen = dict(best.user_attrs["settings"])
        changed = {key: value for key, value in chosen.items() if value != self.space.default.get(key)}
        confirmed = self._confirmed(chosen, measured) if changed else {}
        won = bool(confirmed) and confirmed["lead"] > SURE * confirmed["error"] and confirmed["lead"] > 0
        if won:
            kept = "tuned"
        elif not confirmed:
            kept = "the defaults, because no trial was better"
        elif confirmed["lead"] > 0:
            kept = f"the defaults, because a lead of {confirmed['lead']:.4f} ± {confirmed['error']:.4f} may be chance"
        else:
            kept = f"the defaults, because the best settings were not better there ({confirmed['lead']:+.4f})"
        if (earlier := self._earlier()) and earlier != (chosen if won else {}):
            self.hub.reporter.note(f"what tune kept before is replaced: {in_words(earlier)}")
        data, request = self.parts.material.data, self.order.request
        return {
            "name": request.name,
            "kept": kept,
            "settings": chosen if won else {},
            "best": chosen,
            "default": dict(self.space.default),
            "fixed": dict(request.settings),
            "searched": self.space.describe(),
            "confirmed": confirmed,
            "trials": [_told(t) for t in self._ended()],
            "default_trial": default.number,
            "best_trial": best.number,
            "data": {"source": data.source, "sha256": data.sha256, "rows": len(data) + len(self.parts.confirmed)},
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def confirmed(self, one: Confirmation, scores: Sequence[float]) -> None:
        """Keep the scores of a confirmation in the study, so that a search that is killed here goes on."""
        self.study.set_user_attr(one.key, list(scores))

    def _measured(self, wanted: Sequence[Confirmation]) -> None:
        with self.hub.reporter.piece("confirming", len(wanted)) as advance:
            for one in wanted:
                with trained(self.hub, self.order, self.parts.material, one.settings) as found:
                    self.confirmed(one, row_scores(self.hub, found, self.parts.confirmed))
                advance(1)

    def _confirmed(
        self, chosen: Mapping[str, Any], measured: Callable[[Sequence[Confirmation]], None]
    ) -> dict[str, Any]:
        """The best settings against the defaults on the rows for the end, each trained with other seeds."""
        wanted = []
        for k in range(self.options.confirm):
            seed = (self.settings.seed + 1 + k) % 2**32
            for which, settings in (("default", self.space.default), ("best", chosen)):
                key = f"confirm {k} {which} {in_words(settings)}"
                wanted.append(Confirmation(key, which, {**settings, "seed": seed}))
        measured([one for one in wanted if one.key not in self.study.user_attrs])
        scores: dict[str, list[list[float]]] = {"default": [], "best": []}
        for one in wanted:
            scores[one.which].append(self.study.user_attrs[one.key])
        means = {which: [sum(row) / len(row) for row in zip(*runs, strict=True)] for which, runs in scores.items()}
        ahead, error = lead([-x for x in means["default"]], [-x for x in means["best"]])
        measure = "accuracy" if self.parts.material.task.kind == "choice" else "log-likelihood"
        return {
            "rows": len(self.parts.confirmed),
            "seeds": self.options.confirm,
            "measure": measure,
            "default": round(sum(means["default"]) / len(means["default"]), 6),
            "best": round(sum(means["best"]) / len(means["best"]), 6),
            "lead": round(ahead, 6),
            "error": round(error, 6),
        }


def value_of(figures: Mapping[str, float]) -> float:
    """What is maximised: a choice task's accuracy, with the loss where it is equal; of others minus the loss."""
    loss = min(float(figures["loss"]), 100.0)
    return figures["accuracy"] - 1e-4 * loss if "accuracy" in figures else -loss


def _told(trial: Any) -> dict[str, Any]:
    about = trial.user_attrs
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "settings": about["settings"],
        "figures": about["figures"],
        "epochs_run": about["epochs_run"],
        "seconds": about["seconds"],
        "reason": about["reason"],
    }
