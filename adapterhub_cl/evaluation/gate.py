"""The gate: refuses a version that makes an old task drop by more than is allowed. Pure functions of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapterhub_cl.evaluation.intervals import difference_interval, significant_drop

DEFAULT_LIMIT = 0.02
REFUSED = "promote-refused"  # the log's word for a promotion that the gate refused
LOGGED = ("task", "metric", "before", "after", "n", "answered_by")


@dataclass(frozen=True)
class Effect:
    """What a version does to one task.

    Attributes:
        metric: what was measured; perplexity is turned into the likelihood of a token, 1 ÷ perplexity.
        before: score of the version that answers for the task until now.
        after: score of the new version on the same examples.
        n: number of examples.
        data: where they came from.
        answered_by: the version that answered until now.
        served: whether the new version would answer for this task.
    """

    task: str
    metric: str
    before: float
    after: float
    n: int
    data: str
    answered_by: str
    served: bool = True

    @property
    def drop(self) -> float:
        """How much the score falls; below 0 where it rises."""
        return self.before - self.after

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the drop (Newcombe's hybrid score)."""
        return difference_interval(self.before, self.n, self.after, self.n)

    def over(self, limit: float) -> bool:
        """Whether the drop is above the limit, and beyond what chance explains."""
        return significant_drop(self.before, self.n, self.after, self.n, limit)

    def within_chance(self, limit: float) -> str:
        """What is said of a drop above the limit that passes."""
        return (
            f"note: {self.task} drops by {self.drop:.3f}, above {limit:g}, but no more than chance explains on "
            f"{self.n} examples"
        )

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {**asdict(self), "drop": round(self.drop, 6), "interval": [round(low, 4), round(high, 4)]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Effect:
        return cls(**{key: row[key] for key in cls.__dataclass_fields__ if key in row})


@dataclass(frozen=True)
class Decision:
    """What the gate says.

    Attributes:
        limit: the largest drop that passes, absolute.
        effects: on each task that the version would answer for.
    """

    limit: float
    effects: tuple[Effect, ...]

    @property
    def refused(self) -> tuple[Effect, ...]:
        """The effects that are over the limit, the worst first."""
        return tuple(sorted((e for e in self.effects if e.over(self.limit)), key=lambda e: -e.drop))

    @property
    def passed(self) -> bool:
        return not self.refused

    def message(self, ref: str) -> str:
        """One line: which tasks drop, and by how much."""
        told = "; ".join(f"{e.task} {e.before:.3f} → {e.after:.3f} (−{e.drop:.3f}, n {e.n})" for e in self.refused)
        return f"the gate refused {ref}: it forgets more than {self.limit:g} of {told}"

    def to_log(self) -> dict[str, Any]:
        """What a refusal leaves in the hub's log: the drops that were too large. `refusal_of` reads it back."""
        shares = {"before", "after"}
        return {
            "limit": self.limit,
            "refused": [
                {key: round(getattr(e, key), 6) if key in shares else getattr(e, key) for key in LOGGED}
                for e in self.refused
            ],
        }

    def to_json(self) -> dict[str, Any]:
        return {"limit": self.limit, "passed": self.passed, "effects": [effect.to_json() for effect in self.effects]}


def refusal_of(logged: Mapping[str, Any]) -> Decision:
    """The refusal that `Decision.to_log` wrote."""
    effects = (Effect.from_json({**row, "data": ""}) for row in logged["refused"])
    return Decision(float(logged["limit"]), tuple(effects))


def as_share(metric: str, value: float) -> float:
    """A score as a share between 0 and 1: perplexity becomes the geometric mean likelihood of a token."""
    return 1.0 / max(1.0, value) if metric == "perplexity" else value


def decide(effects: Sequence[Effect], limit: float) -> Decision:
    """The gate's decision on a version.

    Args:
        limit: absolute, per task.
    """
    return Decision(limit, tuple(effects))
