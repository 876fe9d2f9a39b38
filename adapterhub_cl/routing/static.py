"""static: always the same task, or the same mixture, whatever the input.

`tasks=news` or `tasks="news=0.7,reviews=0.3"`. Choose it to pin an engine to one task, to mix adapters by hand, or
as the baseline that a router must beat. It treats no input as out of distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.options import option
from adapterhub_cl.routing import BaseRouter

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.routing import Seen


def parse(text: str) -> dict[str, float]:
    """`a` or `a=0.7,b=0.3` → task → share of the total.

    Raises:
        UsageError: a weight is not a number above 0, or a task is named twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, weight = (piece.strip() for piece in part.partition("="))
        try:
            value = float(weight) if equals else 1.0
        except ValueError:
            value = 0.0
        if not name or not 1e-6 <= value <= 1e6 or name in found:
            raise UsageError(f"static.tasks: {part!r} is not TASK or TASK=WEIGHT", "for example news=0.7,reviews=0.3")
        found[name] = value
    return {name: value / sum(found.values()) for name, value in found.items()}


@dataclass(frozen=True)
class Config:
    tasks: str = option("", "the task, or tasks with weights: news=0.7,reviews=0.3 (shares of the total)", joins=True)

    def __post_init__(self) -> None:
        parse(self.tasks)


class Router(BaseRouter):
    purpose = "always the same task or mixture, whatever the input"
    reads = ""
    calibrates = False
    input_matters = False
    Config = Config

    @classmethod
    def trial_options(cls, tasks: Sequence[str]) -> Mapping[str, Any]:
        return {"tasks": ",".join(f"{task}={weight}" for task, weight in zip(tasks, (0.25, 0.75), strict=False))}

    def learn(self, task: str, known: Any) -> None:
        if task not in self.tasks:
            self.tasks.append(task)

    def unlearn(self, task: str, known: Any) -> None:
        if task in self.tasks:
            self.tasks.remove(task)

    def solve(self) -> None:
        named = parse(self.config.tasks)
        if not named:
            raise UsageError("the static router needs a task", f"static.tasks={self.tasks[0]}")
        for name in named:
            if name not in self.tasks:
                raise UnknownNameError("task", name, self.tasks)

    def scores(self, seen: Seen) -> torch.Tensor:
        import torch

        named = parse(self.config.tasks)
        row = torch.tensor([log(named[task]) if task in named else -torch.inf for task in self.tasks])
        return row.repeat(len(seen.texts), 1)

    def familiarity(self, seen: Seen, scores: torch.Tensor) -> torch.Tensor:
        return scores.new_full((len(scores),), float("inf"))
