"""Replay: replay samples of earlier tasks are mixed into every step (experience replay, Chaudhry et al. 2019,
arXiv:1902.10486), on a fixed or an adaptive review schedule.

Fixed: each step gets `ratio` times as many old rows as new ones, spread evenly over the tasks. Adaptive: at intervals
the loss on a few samples of each old task is measured; a task whose loss has risen since the run began is slipping,
gets a larger share of the old rows, and a higher weight in the loss. The rate of old rows rises while tasks slip and
falls otherwise, but the whole run has as many as the fixed schedule, minus the cost of measuring.

Choose it if one adapter has to serve several tasks and samples may be stored: it forgets least of all strategies that
need no further adapter. The schedule is recorded in `training.json`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy, Stage

if TYPE_CHECKING:
    import torch

SCHEDULES = ("fixed", "adaptive")
WINDOW = 4  # samples considered to find one with the step's length
FORWARD_COST = 1 / 3  # relative to a training row: a forward pass without a backward pass
HARDEST = 2.0  # maximum weight of a slipping task's rows


@dataclass(frozen=True)
class Config:
    ratio: float = option(0.25, "old rows per new row of a step")
    token_budget: int = option(0, "old tokens per step in place of a ratio; 0: use the ratio")
    schedule: str = option("fixed", "fixed, or adaptive: tasks that slip are reviewed more often and with more weight")
    every: int = option(20, "adaptive: steps between two measurements")
    probes: int = option(8, "adaptive: samples of each task to measure")

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (not 0 <= self.ratio <= 16, f"replay.ratio must be between 0 and 16, not {self.ratio:g}"),
                (self.token_budget < 0, f"replay.token_budget must be at least 0, not {self.token_budget}"),
                (self.every < 1, f"replay.every must be at least 1, not {self.every}"),
                (self.probes < 1, f"replay.probes must be at least 1, not {self.probes}"),
                (
                    self.schedule not in SCHEDULES,
                    f"replay.schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}",
                ),
            )
            if wrong
        ]
        if problems:
            raise UsageError("; ".join(problems), "for example --set replay.ratio=0.25 --set replay.schedule=adaptive")


def review_shares(slips: Mapping[str, float]) -> dict[str, float]:
    """Each task's share of the old rows, from how far its loss has risen (nats): half of the rows are spread evenly,
    the other half in proportion to the rise. Without any rise: evenly."""
    total = sum(max(0.0, slip) for slip in slips.values())
    even = 1 / len(slips)
    if total <= 0:
        return dict.fromkeys(slips, even)
    return {task: 0.5 * even + 0.5 * max(0.0, slip) / total for task, slip in slips.items()}


def review_rate(slips: Mapping[str, float]) -> float:
    """The rate relative to the even pace, from 0.5 (nothing slips) to 1.5 (the mean loss rose by 1 nat or more)."""
    mean = sum(max(0.0, slip) for slip in slips.values()) / len(slips)
    return 0.5 + min(1.0, mean)


class Strategy(BaseStrategy):
    """Adds old samples to every step."""

    shares = "all weights, trained on replay samples of earlier tasks too"
    reads = "samples"
    Config = Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.owed = 0.0  # old rows, or tokens, that are due but not drawn yet
        self.spent = 0.0
        self.queues: dict[str, list[int]] = {}
        self.draws = 0
        self.first: dict[str, float] = {}
        self.slips: dict[str, float] = {}
        self.measured = -1
        self.log: list[dict[str, Any]] = []

    def review(self, stage: Stage, rows: Sequence[int]) -> Sequence[tuple[int, float]]:
        if not stage.reviewed:
            return ()
        tasks = list(stage.reviewed)
        shares, pace, weights = dict.fromkeys(tasks, 1 / len(tasks)), 1.0, dict.fromkeys(tasks, 1.0)
        by_tokens = self.config.token_budget > 0
        due = float(self.config.token_budget) if by_tokens else self.config.ratio * len(rows)
        if self.config.schedule == "adaptive":
            self._measure(stage)
            shares, pace = review_shares(self.slips), self._pace(stage, due)
            weights = {task: min(HARDEST, 1 + max(0.0, self.slips[task])) for task in tasks}
        self.owed += due * pace
        generator = random.Random(f"review {stage.seed} {stage.step}")
        longest = max(stage.length(row) for row in rows)
        chosen: dict[int, float] = {}
        available = sum(len(found) for found in stage.reviewed.values())
        while self.owed >= 1 and len(chosen) < available:
            task = generator.choices(tasks, [shares[t] for t in tasks])[0]
            row = self._draw(stage, task, longest)
            cost = stage.length(row) if by_tokens else 1.0
            if by_tokens and cost > self.owed and chosen:
                self.queues[task].insert(0, row)  # a later step has room for it
                break
            self.owed -= cost
            self.spent += cost
            chosen[row] = weights[task]
        self.owed = min(self.owed, 4 * max(1.0, due))
        return list(chosen.items())

    def _draw(self, stage: Stage, task: str, longest: int) -> int:
        """The next sample of a task: among the next few of a shuffled round, the one closest to the step's length."""
        queue = self.queues.setdefault(task, [])
        if not queue:
            queue.extend(stage.reviewed[task])
            random.Random(f"round {stage.seed} {task} {self.draws}").shuffle(queue)
        self.draws += 1
        near = min(range(min(WINDOW, len(queue))), key=lambda k: abs(stage.length(queue[k]) - longest))
        return queue.pop(near)

    def _measure(self, stage: Stage) -> None:
        now = stage.step // self.config.every
        if now == self.measured:
            return
        self.measured = now
        losses: dict[str, float] = {}
        for task, rows in stage.reviewed.items():
            some = random.Random(f"probes {stage.seed} {task}").sample(list(rows), min(self.config.probes, len(rows)))
            found = stage.mean_losses(some)
            losses[task] = sum(found) / len(found)
            self.spent += FORWARD_COST * len(some) if not self.config.token_budget else 0.0
        self.first = self.first or losses
        self.slips = {task: losses[task] - self.first[task] for task in losses}
        shares = review_shares(self.slips)
        self.log.append(
            {
                "step": stage.step,
                "loss": {task: round(value, 4) for task, value in losses.items()},
                "share": {task: round(value, 4) for task, value in shares.items()},
                "pace": round(review_rate(self.slips), 4),
            }
        )

    def _pace(self, stage: Stage, due: float) -> float:
        """The rate, limited to what the fixed schedule would use over the whole run."""
        left = due * stage.steps - self.spent
        even = left / max(1e-9, due * max(1, stage.steps - stage.step))
        return max(0.0, min(review_rate(self.slips), 2 * even))

    def summary(self) -> dict[str, Any]:
        return {"review_schedule": self.log} if self.log else {}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        names = ("owed", "spent", "queues", "draws", "first", "slips", "measured", "log")
        return {}, {name: getattr(self, name) for name in names}

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)
