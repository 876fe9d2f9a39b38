"""The options of `learn`. The command reads them at its start, so nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """When something is learned from production, and how it comes to serve."""

    task: str = option("", "only this task", names="tasks")
    enough: int = option(20, "different questions with a right answer that make a lesson")
    canary: float = option(
        0.1, "share of the conversations that a new version answers before it is decided on; 0: it serves at once"
    )
    judged: int = option(20, "answers of the canary that users must have judged before it is decided on")
    wait_days: float = option(
        14.0, "days after which a canary that too few users judged is decided on by the rows held back; 0: never"
    )
    max_forgetting: float | None = option(
        None, "how much an earlier task, or the task's own held-out rows, may lose, 0 to 1; default: the hub's"
    )

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (self.enough < 1, f"--enough must be at least 1, not {self.enough}"),
                (not 0 <= self.canary < 1, f"--canary must be at least 0 and below 1, not {self.canary:g}"),
                (not 0 <= self.wait_days < inf, f"--wait-days must be at least 0, not {self.wait_days:g}"),
                (self.judged < 1, f"--judged must be at least 1, not {self.judged}"),
            )
            if wrong
        ]
        if problems:
            raise UsageError("; ".join(problems), "cl-adapter learn --help lists the options")
