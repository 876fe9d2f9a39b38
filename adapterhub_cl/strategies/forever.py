"""FOREVER, replay by a forgetting curve (Feng et al. 2026, ACL 2026 long 1144, arXiv:2601.03938): old samples are
reviewed at growing intervals, and time is how far the model has moved.

Model time τ is the sum of ‖Θ_t − Θ_{t−1}‖ over the adapter's weights since the run began; a day is what the first
steps (`day`, 24) take. A review is due at 1, 2, 4, 7, 15, 30, … days, as in Ebbinghaus' curve (then twice as long
each time). While a review goes on, the weights are pulled to those from before the run by β·‖Θ − Θ*‖², with β =
`pull` · clip(1 + γ(μ/μ₀ − 1), ½, 3), where μ is the moving average of the steps' lengths and μ₀ that of the first
day.

Three things are not in the descriptions that we found, and are ours. A review is one pass over the samples that are
kept, spread over steps with at most `ratio` old rows for each new one. γ (`sensitivity`) is 1. A run with fewer
than eight days takes an eighth of its steps as a day, since otherwise few reviews or none would fall due.

Choose it if a run is long and samples may be stored: then it reviews less than `replay` and at better times.
`replay` with its adaptive schedule measures what is forgotten instead of predicting it.
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

    from adapterhub_cl.data.batches import Batch

DAYS = (1, 2, 4, 7, 15, 30)
FEWEST_DAYS = 8
DECAY, LEAST, MOST = 0.05, 0.5, 3.0  # of the moving average; of the factor of β


@dataclass(frozen=True)
class Config:
    day: int = option(24, "steps of the first day; fewer in a run of fewer than eight days")
    ratio: float = option(1.0, "most old rows for each new one while a review goes on")
    pull: float = option(0.001, "weight of the distance from the old weights while a review goes on (β)")
    sensitivity: float = option(1.0, "how much that weight follows the size of the steps (γ)")

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (self.day < 1, f"forever.day must be at least 1, not {self.day}"),
                (not 0 < self.ratio <= 16, f"forever.ratio must be above 0 and at most 16, not {self.ratio:g}"),
                (not 0 <= self.pull <= 100, f"forever.pull must be between 0 and 100, not {self.pull:g}"),
                (
                    not 0 <= self.sensitivity <= 100,
                    f"forever.sensitivity must be between 0 and 100, not {self.sensitivity:g}",
                ),
            )
            if wrong
        ]
        if problems:
            raise UsageError("; ".join(problems), "for example --set forever.day=24 --set forever.pull=0.001")


def due_after(reviews: int) -> float:
    """The day on which the next review is due, after so many."""
    return float(DAYS[reviews]) if reviews < len(DAYS) else DAYS[-1] * 2.0 ** (reviews - len(DAYS) + 1)


class Strategy(BaseStrategy):
    """Reviews old samples when the model has moved far enough."""

    shares = "all weights, trained on replay samples too, at growing intervals of how far the weights have moved"
    reads = "samples"
    reads_logits = False
    Config = Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.moved = self.day = self.usual = self.recent = 0.0  # τ, a day of it, μ₀, μ
        self.reviews: list[dict[str, Any]] = []
        self.queue: list[int] = []

    def begin(self, stage: Stage) -> None:
        self.old = {name: p.detach().clone() for name, p in stage.parameters.items()}
        self.reviewing = False

    def review(self, stage: Stage, rows: Sequence[int]) -> Sequence[tuple[int, float]]:
        self.last = {name: p.detach().clone() for name, p in stage.parameters.items()}
        if self.day and self.moved >= due_after(len(self.reviews)) * self.day:
            known = sorted(row for found in stage.reviewed.values() for row in found)
            self.reviews.append({"step": stage.step, "days": round(self.moved / self.day, 2), "rows": len(known)})
            random.Random(f"review {stage.seed} {len(self.reviews)}").shuffle(known)
            self.queue += known
        left = {row for found in stage.reviewed.values() for row in found}
        self.queue = [row for row in self.queue if row in left]
        count = max(1, int(self.config.ratio * len(rows)))
        chosen, self.queue = dict.fromkeys(self.queue[:count], 1.0), self.queue[count:]
        self.reviewing = bool(chosen)
        return list(chosen.items())

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        if not self.reviewing or not self.config.pull:
            return None
        change = self.recent / self.usual if self.usual else 1.0
        factor = min(MOST, max(LEAST, 1 + self.config.sensitivity * (change - 1)))
        pulls = [((p - self.old[name]) ** 2).sum() for name, p in stage.parameters.items()]
        pulled: torch.Tensor = sum(pulls[1:], start=pulls[0]) * (float(self.config.pull) * factor)
        return pulled

    def after_step(self, stage: Stage) -> None:
        squares = [((p.detach() - self.last[name]).double() ** 2).sum() for name, p in stage.parameters.items()]
        length = float(sum(squares[1:], start=squares[0])) ** 0.5
        self.moved += length
        first = min(self.config.day, max(1, stage.steps // FEWEST_DAYS))
        done = stage.step + 1  # the loop counts the step after this hook
        self.recent = length if done == 1 else (1 - DECAY) * self.recent + DECAY * length
        if done == first:
            self.day, self.usual = self.moved, self.moved / first

    def summary(self) -> dict[str, Any]:
        return {"reviews": self.reviews} if self.reviews else {}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        names = ("moved", "day", "usual", "recent", "reviews", "queue")
        return {}, {name: getattr(self, name) for name in names}

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)
