"""From scores to decisions, for all routers: calibrated weights, top-k, and whether an input belongs to any task.

A share of each task's samples is held out. The router learns the rest and scores the held-out samples; a temperature
turns the scores into probabilities, and the lower end of their familiarity gives the threshold below which an input is
out of distribution: one for each form of the samples, because a whole prompt is more familiar than a bare text. Then
the held-out samples are learned too. Their choice depends only on the task's name and their number, so a
router that learned the tasks one by one decides like one that learned them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from adapterhub_cl.deciding.fitting import fit_temperature, fit_threshold, held_out
from adapterhub_cl.deciding.scope import Bounds
from adapterhub_cl.errors import AdapterError, BaseModelError, UnknownNameError, UsageError
from adapterhub_cl.merging.factors import Factors
from adapterhub_cl.routing import BaseRouter, Routed, Seen

See = Callable[[str, Sequence[int]], Seen]
LEAST_CONFIDENCE = 0.4  # an input below it, or below EVEN times an even chance, belongs to no task
EVEN = 1.5


@dataclass(frozen=True)
class SampleRows:
    """Inputs of which only the hidden states are known."""

    hidden: torch.Tensor

    @property
    def texts(self) -> Sequence[str]:
        return [""] * len(self.hidden)

    def activity(self, directions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError

    def losses(self, tasks: Sequence[str]) -> torch.Tensor:
        raise NotImplementedError


class Calibrated:
    """A router with a temperature and a threshold.

    Args:
        router: a router that knows no task yet.
        holdout: share of each task's samples that calibration holds out.
        false_fallbacks: share of the known tasks' inputs that may be treated as out of distribution.
        seed: for the choice of held-out samples.
        see: the data of a task's samples with these numbers; required by routers that read more than hidden states,
            which stay uncalibrated without it.

    Attributes:
        confusion: task → chosen task → how many of its held-out samples (in all their forms), as the router chose
            before it learned them; empty if none were held out.
    """

    def __init__(
        self,
        router: BaseRouter,
        *,
        holdout: float = 0.2,
        false_fallbacks: float = 0.005,
        seed: int = 0,
        see: See | None = None,
    ) -> None:
        if not 0 <= holdout < 1 or not 0 <= false_fallbacks < 1:
            raise UsageError("the held-out share and the share of false fallbacks must be from 0 to below 1")
        self.router, self.holdout, self.false_fallbacks = router, holdout, false_fallbacks
        self.seed, self.see = seed, see
        self.temperature, self.thresholds = 1.0, [-inf]
        self.confusion: dict[str, dict[str, int]] = {}
        self._samples: dict[str, torch.Tensor] = {}  # task → [n, forms, in]
        self._whole: set[str] = set()  # tasks whose held-out samples have been learned
        self._stale = False

    def threshold(self, form: int = 0) -> float:
        """An input of this form is out of distribution below it; for an unknown form, the last one's threshold."""
        return self.thresholds[min(form, len(self.thresholds) - 1)]

    @property
    def tasks(self) -> list[str]:
        """The known tasks, sorted."""
        return sorted(self._samples)

    def add_task(
        self, task: str, samples: torch.Tensor | None = None, factors: Mapping[str, Factors] | None = None
    ) -> None:
        """Add a task; a known one is replaced.

        Args:
            samples: pooled hidden states `[n, in]`, or `[n, forms, in]` if each sample has several forms (the bare
                text, the whole prompt): they are held out together.
            factors: layer → ΔW, for a router that reads them.

        Raises:
            AdapterError: the router learns from samples, and there are none.
            BaseModelError: a hidden state is not finite.
        """
        rows = torch.empty(0, 1, 1) if samples is None else samples.float()
        rows = rows[:, None] if rows.dim() == 2 else rows
        if self.router.reads == "samples" and not len(rows):
            raise AdapterError(
                f"task {task!r} has no replay samples to route by", "train it with --replay, or use --router arrow"
            )
        _refuse_not_finite(rows.flatten(1), f"samples of task {task!r}")
        if task in self._samples:
            self.remove_task(task)
        self._samples[task], self._stale = rows, True
        if self.router.reads == "samples":
            self.router.learn(task, rows[self._split(task)[0]].flatten(0, 1))
        else:
            self.router.learn(task, (factors or {}) if self.router.reads == "factors" else None)

    def remove_task(self, task: str) -> None:
        """Remove a task; nothing of it remains in the router.

        Raises:
            UnknownNameError: no such task.
        """
        if task not in self._samples:
            raise UnknownNameError("task of the router", task, self.tasks)
        rows: Any = None
        if self.router.reads == "samples":
            rows = self._samples[task]
            rows = (rows if task in self._whole else rows[self._split(task)[0]]).flatten(0, 1)
        self.router.unlearn(task, rows)
        del self._samples[task]
        self._whole.discard(task)
        self._stale = True

    def samples(self, form: int = 0) -> dict[str, torch.Tensor]:
        """Each task's samples `[n, in]` in one of their forms; for an unknown form, the last. Tasks without samples are
        left out."""
        found = {task: self._samples[task] for task in self.tasks if self._samples[task].numel()}
        return {task: rows[:, min(form, rows.shape[1] - 1)] for task, rows in found.items()}

    def samples_of(self, task: str) -> int:
        return len(self._samples[task])

    def _split(self, task: str) -> tuple[list[int], list[int]]:
        """Indices of the samples to learn first, and of those held out."""
        count = len(self._samples[task])
        out = held_out(task, count, self.holdout, self.seed)
        return sorted(set(range(count)) - set(out)), out

    def _held(self, task: str) -> torch.Tensor:
        return self._samples[task][self._split(task)[1]].flatten(0, 1)

    def fit(self) -> None:
        """Calibrate, then let the router learn everything; does nothing if no task was added or removed."""
        if not self._stale:
            return
        if self._samples:
            learns = self.router.reads == "samples"
            for task in sorted(self._whole) if learns else ():
                self.router.unlearn(task, self._held(task))
            self._whole.clear()
            self.router.solve()
            self._calibrate()
            held = [task for task in self.tasks if self._split(task)[1]]
            if learns and held:
                for task in held:
                    self.router.learn(task, self._held(task))
                self.router.solve()
            self._whole = set(self._samples)
        self._stale = False

    def _calibrate(self) -> None:
        scores, targets = [], []
        familiarity: list[list[torch.Tensor]] = []  # for each form
        self.confusion = {}
        for column, task in enumerate(self.router.tasks if self.router.calibrates else ()):
            out = self._split(task)[1]
            seen = self._seen(task, out) if out else None
            if seen is not None:
                found = self.router.scores(seen)
                scores.append(found)
                targets.append(torch.full((len(found),), column))
                counts = found.argmax(1).bincount(minlength=len(self.router.tasks)).tolist()
                self.confusion[task] = {name: n for name, n in zip(self.router.tasks, counts, strict=True) if n}
                forms = self.router.familiarity(seen, found).view(len(out), -1).unbind(1)
                familiarity += [[] for _ in forms[len(familiarity) :]]
                for one, values in zip(familiarity, forms, strict=False):
                    one.append(values)
        self.temperature, self.thresholds = 1.0, [-inf]
        if scores:
            self.temperature = fit_temperature(torch.cat(scores), torch.cat(targets))
            self.thresholds = [fit_threshold(torch.cat(one), self.false_fallbacks) for one in familiarity]

    def _seen(self, task: str, numbers: Sequence[int]) -> Seen | None:
        if self.see is not None:
            return self.see(task, numbers)
        return SampleRows(self._held(task)) if self.router.reads == "samples" else None

    def route(
        self,
        seen: Seen,
        top_k: int = 1,
        among: Collection[str] | None = None,
        forms: Sequence[int] = (),
        bounds: Sequence[Bounds] = (),
    ) -> list[Routed]:
        """The decision for each input.

        Args:
            top_k: the most tasks to mix.
            among: the only tasks to choose from. Where it leaves none out, an input that fits three or more tasks about
                equally (its confidence is below `LEAST_CONFIDENCE` and `EVEN` times an even chance) is out of
                distribution too.
            forms: which of the samples' forms each input has; empty: the first.
            bounds: what the scopes of facts say about each input; empty: nothing.

        Raises:
            AdapterError: no task is known.
            UsageError: `top_k` is below 1, or none of `among` is known.
            BaseModelError: a hidden state is not finite.
        """
        if top_k < 1:
            raise UsageError(f"the number of tasks to mix must be 1 or more, not {top_k}")
        if not self._samples:
            raise AdapterError("the router knows no tasks", "add one: cl-adapter add-task NAME DATA")
        self.fit()
        names = self.router.tasks
        allowed = torch.tensor([among is None or name in among for name in names])
        whole = bool(allowed.all())
        if not allowed.any():
            raise UnknownNameError("task of the router", ", ".join(sorted(among or ())) or "(none)", names)
        if self.router.reads == "samples":
            _refuse_not_finite(seen.hidden, "inputs")
        scores = self.router.scores(seen)
        familiarity = self.router.familiarity(seen, scores).double()
        open_to = scores.double().masked_fill(~allowed, -inf)
        shut = ~torch.isfinite(open_to).any(1, keepdim=True) & allowed  # for static, if none of its tasks is allowed
        chances = torch.softmax(torch.where(shut, 0.0, open_to) / self.temperature, 1)
        limits = [self.threshold(form) for form in forms or [0] * len(scores)]
        # A short text may be familiar and yet fit several tasks about equally.
        floor = min(LEAST_CONFIDENCE, EVEN / len(names)) if self.router.calibrates else 0.0
        strange = [
            known < limit or (whole and most < floor)
            for known, limit, most in zip(familiarity.tolist(), limits, chances.amax(1).tolist(), strict=True)
        ]
        why = [""] * len(scores)
        for k, bound in enumerate(bounds if self.router.input_matters else ()):
            if bound:
                chances[k], strange[k], why[k] = _within(bound, names, chances[k], strange[k])
        best = chances.topk(min(top_k, int(allowed.sum())), 1)
        shares = best.values / best.values.sum(1, keepdim=True)
        return [
            Routed(
                tuple((names[at], share) for at, share in zip(places, row, strict=True) if share > 0),
                confidence=values[0],
                familiarity=known,
                threshold=limit,
                out_of_distribution=out,
                why=reason,
            )
            for places, row, values, known, limit, out, reason in zip(
                best.indices.tolist(),
                shares.tolist(),
                best.values.tolist(),
                familiarity.tolist(),
                limits,
                strange,
                why,
                strict=True,
            )
        ]

    def state(self) -> dict[str, torch.Tensor]:
        """What the router learned, including calibration, to be stored."""
        self.fit()
        numbers = torch.tensor([self.temperature, *self.thresholds], dtype=torch.float64)
        return {"calibration": numbers, **{f"router.{key}": value for key, value in self.router.state().items()}}

    def restore(
        self, tasks: Sequence[str], state: Mapping[str, torch.Tensor], samples: Mapping[str, torch.Tensor]
    ) -> None:
        """Restore the object that returned `state`.

        Args:
            tasks: the value of `router.tasks`.
            samples: task → its samples as they were added; read when a task is added or removed.
        """
        own = {key.removeprefix("router."): value for key, value in state.items() if key.startswith("router.")}
        self.router.restore(tasks, own)
        self.temperature, *self.thresholds = state["calibration"].tolist()
        self._samples, self._whole, self._stale = _Lazily(samples, tasks), set(tasks), False


def _within(
    bound: Bounds, names: Sequence[str], chances: torch.Tensor, strange: bool
) -> tuple[torch.Tensor, bool, str]:
    """A router's decision for one input, changed to what the scopes of facts allow.

    Args:
        chances: of each task, `[n_tasks]`, fp64; 0 for one that is not allowed.
        strange: whether the input is out of distribution.

    Returns:
        the same two, and why they are other than they were; empty if they are not.
    """
    first = names[int(chances.argmax())]
    meant = torch.tensor([name in bound.only for name in names])
    if meant.any() and (first in bound.only or strange or not bound.shares(first)):
        kept = chances.masked_fill(~meant, 0.0)
        # a chance can be too small for a number
        kept = kept / kept.sum() if kept.sum() > 0 else meant.double() / meant.sum()
        said = f"names {', '.join(bound.named)}" if bound.named else "it is a question that was taught"
        return kept, False, said
    shut = torch.tensor([name in bound.never for name in names])
    rest = chances.masked_fill(shut, 0.0)
    if first not in bound.never:
        return rest, strange, ""
    said = f"names nothing that {first} knows"
    # It looks like a question of that task. Only another task that it fits about as well may answer it.
    return (rest, strange, said) if rest.amax() >= LEAST_CONFIDENCE else (chances, True, said)


class _Lazily(dict[str, torch.Tensor]):
    """Samples that are read from another mapping at first use."""

    def __init__(self, source: Mapping[str, torch.Tensor], tasks: Sequence[str]) -> None:
        super().__init__(dict.fromkeys(tasks, torch.empty(0)))
        self._source, self._unread = source, set(tasks)

    def __getitem__(self, task: str) -> torch.Tensor:
        if task in self._unread:
            rows = self._source[task].float()
            self[task] = rows[:, None] if rows.dim() == 2 else rows
        return super().__getitem__(task)

    def __setitem__(self, task: str, rows: torch.Tensor) -> None:
        self._unread.discard(task)
        super().__setitem__(task, rows)


def _refuse_not_finite(rows: torch.Tensor, what: str) -> None:
    bad = int((~torch.isfinite(rows).all(1)).sum()) if len(rows) else 0
    if bad:
        raise BaseModelError(
            f"the hidden states of {bad} of {len(rows)} {what} are not finite (NaN or infinite)",
            "the base overflows in this precision: load it in bf16 or fp32",
        )
