"""A forecast of forgetting: what is expected of each earlier task, and whether the gate will refuse the version. Pure
functions of what the model expects, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from adapterhub_cl.errors import GateRefused
from adapterhub_cl.forecasting.expectation import LEVEL, Expected, Signs


def metric_of_share(metric: str) -> str:
    """What a score is called as a share between 0 and 1: 1 ÷ perplexity is the likelihood of a token."""
    return "token_likelihood" if metric == "perplexity" else metric


@dataclass(frozen=True)
class TaskForecast:
    """What is expected of one earlier task.

    Attributes:
        metric: of `before`, the score of what answers for the task now as a share; see `metric_of_share`.
        expected: the drop of that score; None where there is no forecast, and `reason` says why.
        signs: what it was made of.
    """

    task: str
    metric: str = ""
    before: float = 0.0
    expected: Expected | None = None
    signs: Signs | None = None
    reason: str = ""

    def describe(self) -> str:
        """`news: 0.91, expected drop 0.12 (90 % interval 0.03 to 0.21)`."""
        if self.expected is None:
            return f"{self.task}: no forecast, {self.reason}"
        drop, low, high = self.expected.drop, self.expected.low, self.expected.high
        return (
            f"{self.task}: {self.metric} {self.before:.3f}, expected drop {drop:.3f} "
            f"({100 * LEVEL:.0f} % interval {low:.3f} to {high:.3f})"
        )

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"task": self.task, "metric": self.metric, "before": self.before, "reason": self.reason}
        row |= {"drop": None} if self.expected is None else asdict(self.expected)
        return row if self.signs is None else {**row, "signs": self.signs.to_json()}


@dataclass(frozen=True)
class Forecast:
    """The forecast of a training.

    Attributes:
        limit: of the gate: how much a task may lose.
        tasks: every earlier task that the new version will answer for.
        step: after which of `steps` it was made; 0 where nothing had to be tried.
        error: of the model, as it was measured.
        reason: why nothing can be lost, or nothing can be told; empty where there is a forecast.
    """

    limit: float
    tasks: Sequence[TaskForecast] = ()
    step: int = 0
    steps: int = 0
    error: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def told(self) -> list[tuple[TaskForecast, Expected]]:
        """Those tasks of which something is expected."""
        return [(one, one.expected) for one in self.tasks if one.expected is not None]

    @property
    def doomed(self) -> list[TaskForecast]:
        """The tasks that will drop by more than the limit even by the lower end of the interval, the worst first."""
        over = [(one, found) for one, found in self.told if found.low > self.limit]
        return [one for one, _ in sorted(over, key=lambda pair: -pair[1].drop)]

    @property
    def likely(self) -> list[TaskForecast]:
        """The tasks that are expected to drop by more than the limit, but may not."""
        return [one for one, found in self.told if found.drop > self.limit >= found.low]

    @property
    def doomed_together(self) -> bool:
        """Whether the mean drop will be over the limit, if the errors of all forecasts go the same way."""
        lows = [found.low for _, found in self.told]
        return len(lows) > 1 and math.fsum(lows) / len(lows) > self.limit

    @property
    def refused(self) -> bool:
        return bool(self.doomed) or self.doomed_together

    def lines(self) -> list[str]:
        """What the user is told."""
        if self.reason:
            return [f"forecast: {self.reason}"]
        found = [f"forecast, after step {self.step} of {self.steps}:"]
        found += [f"  {one.describe()}" for one in self.tasks]
        if self.told:
            found.append(f"  {self.trust()}")
        if self.likely and not self.refused:
            names = ", ".join(one.task for one in self.likely)
            found.append(
                f"warning: {names} may drop by more than {self.limit:g}, and the gate may refuse the version; the "
                "training goes on, because the interval does not exclude that it passes"
            )
        return found

    def trust(self) -> str:
        """How far the forecast can be trusted, by the benchmark."""
        if not self.error:
            return "how good these forecasts are has not been measured"
        return (
            f"on streams that it had not seen, such forecasts had a rank correlation of {self.error['spearman']:.2f} "
            f"with what happened, which lay in {100 * self.error['coverage']:.0f} % of their intervals"
            + ("" if self.error.get("aim_reached") else " (the aim is 0.8 and 85 %)")
        )

    def refusal(self, again: str, keeping: str) -> GateRefused:
        """The error that stops the training.

        Args:
            again: the command that trains all the same.
            keeping: the option with which less is forgotten.
        """
        lows = {one.task: found.low for one, found in self.told}
        worst = ", ".join(f"{one.task} will lose at least {lows[one.task]:.3f}" for one in self.doomed)
        mean = math.fsum(lows.values()) / max(1, len(lows))
        return GateRefused(
            "the forecast is that the gate will refuse this version: "
            f"{worst or f'the {len(lows)} earlier tasks will lose at least {mean:.3f} on average'} (limit "
            f"{self.limit:g}); the training was stopped after step {self.step} of {self.steps}, and nothing was "
            "recorded",
            f"try {keeping}, a lower --learning-rate or fewer --epochs, allow more with --max-forgetting, or "
            f"train all the same without --forecast: {again}",
            gate={"limit": self.limit, "passed": False, "effects": [], "forecast": self.to_json()},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "limit": self.limit,
            "refused": self.refused,
            "step": self.step,
            "steps": self.steps,
            "reason": self.reason,
            "tasks": [one.to_json() for one in self.tasks],
            "error": dict(self.error),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Forecast:
        """The reverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        tasks = []
        for one in row["tasks"]:
            expected = None if one["drop"] is None else Expected(one["drop"], one["low"], one["high"])
            signs = Signs(**one["signs"]) if "signs" in one else None
            metric = metric_of_share(one["metric"])  # older forecasts call the share perplexity
            tasks.append(TaskForecast(one["task"], metric, one["before"], expected, signs, one["reason"]))
        return cls(row["limit"], tuple(tasks), row["step"], row["steps"], row["error"], row["reason"])
