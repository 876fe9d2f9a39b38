"""The gate: refuses a version if an old task drops by more than the limit, or if several drop too much on average. Pure
functions of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapterhub_cl.errors import HubError, UsageError
from adapterhub_cl.evaluation.base_effect import BaseEffect
from adapterhub_cl.evaluation.intervals import difference_interval, mean_interval
from adapterhub_cl.registry import Registry

DEFAULT_LIMIT = 0.02
REFUSED = "promote-refused"  # name of the log entry for a promotion that the gate refused
LOGGED = ("task", "metric", "before", "after", "n", "answered_by", "correlation")


@dataclass(frozen=True)
class Effect:
    """The effect of a version on one task.

    Attributes:
        metric: the metric; perplexity is converted to the likelihood of a token, 1 ÷ perplexity.
        before: score of the version that has served the task so far.
        after: score of the new version on the same examples.
        n: number of examples.
        data: where the examples came from.
        answered_by: the version that has served the task so far.
        served: whether the new version would serve this task.
        correlation: of the two versions' scores over the examples; 0 if the scores of single examples are not known.
    """

    task: str
    metric: str
    before: float
    after: float
    n: int
    data: str
    answered_by: str
    served: bool = True
    correlation: float = 0.0

    @property
    def drop(self) -> float:
        """How much the score falls; negative if it rises."""
        return self.before - self.after

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the drop (Newcombe's hybrid score, of paired shares where the correlation is known)."""
        return self._interval(1)

    def _interval(self, tasks: int) -> tuple[float, float]:
        return difference_interval(self.before, self.n, self.after, self.n, self.correlation, tasks)

    def over(self, limit: float, tasks: int = 1) -> bool:
        """Whether the drop is above the limit, and significant as one of so many: of twelve tasks that are no worse,
        one may well look worse."""
        return self.drop > limit and self._interval(tasks)[0] > 0

    def within_chance(self, limit: float) -> str:
        """The note for a drop above the limit that is accepted because it may be chance."""
        return (
            f"note: {self.task} drops by {self.drop:.3f}, above {limit:g}, but on {self.n} examples this may be chance"
        )

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {**asdict(self), "drop": round(self.drop, 6), "interval": [round(low, 4), round(high, 4)]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Effect:
        return cls(**{key: row[key] for key in cls.__dataclass_fields__ if key in row})


@dataclass(frozen=True)
class Together:
    """The drops of several tasks as one mean: drops that may each be chance can be significant together.

    Attributes:
        drop: the mean of the drops.
        interval: its 95 % interval; the tasks' examples are independent samples.
    """

    tasks: int
    drop: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, effects: Sequence[Effect]) -> Together | None:
        """The mean of the drops; None for fewer than two."""
        if len(effects) < 2:
            return None
        mean = math.fsum(effect.drop for effect in effects) / len(effects)
        return cls(len(effects), mean, mean_interval([(effect.drop, effect.interval) for effect in effects]))

    def over(self, limit: float) -> bool:
        """Whether the mean drop is above the limit, and significant, as in `Effect.over`."""
        return self.drop > limit and self.interval[0] > 0

    def message(self, limit: float) -> str:
        """The description of a mean drop over the limit."""
        low, high = self.interval
        return (
            f"{self.tasks} tasks drop by {self.drop:.3f} on average (95 % interval {low:.2f} to {high:.2f}), "
            f"above {limit:g}"
        )

    def to_json(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "drop": round(self.drop, 6), "interval": [round(end, 4) for end in self.interval]}


@dataclass(frozen=True)
class Decision:
    """The gate's decision.

    Attributes:
        limit: the largest accepted drop, absolute.
        effects: on each task that the version would serve.
        general: on text that no task owns; None if that was not measured.
    """

    limit: float
    effects: tuple[Effect, ...]
    general: BaseEffect | None = None

    @property
    def refused(self) -> tuple[Effect, ...]:
        """The effects that are over the limit on their own, the worst first."""
        over = (e for e in self.effects if e.over(self.limit, len(self.effects)))
        return tuple(sorted(over, key=lambda e: -e.drop))

    @property
    def together(self) -> Together | None:
        """The mean of all effects; None for fewer than two."""
        return Together.of(self.effects)

    @property
    def over_together(self) -> bool:
        """Whether the mean of the effects is over the limit, even if no single one is."""
        return self.together is not None and self.together.over(self.limit)

    @property
    def passed(self) -> bool:
        return not self.refused and not self.over_together and not self.spoils_base

    @property
    def spoils_base(self) -> bool:
        """Whether the loss on general text rises by more than it may."""
        return self.general is not None and self.general.refused

    @property
    def blamed(self) -> tuple[Effect, ...]:
        """Why it was refused: the effects over the limit, otherwise all of them if their mean is."""
        return self.refused or (self.effects if self.over_together else ())

    @property
    def within_chance(self) -> tuple[str, ...]:
        """Notes for drops above the limit that were accepted; empty if the version was refused."""
        refused = self.refused
        if not refused and self.over_together:
            return ()
        return tuple(e.within_chance(self.limit) for e in self.effects if e.drop > self.limit and e not in refused)

    def message(self, ref: str) -> str:
        """One line: which tasks drop, and by how much; and what the base forgot, if that is too much."""
        why = []
        if self.refused:
            told = "; ".join(f"{e.task} {e.before:.3f} → {e.after:.3f} (−{e.drop:.3f}, n {e.n})" for e in self.refused)
            why.append(f"these tasks drop by more than {self.limit:g}: {told}")
        elif self.over_together and self.together is not None:
            why.append(self.together.message(self.limit))
        if self.spoils_base and self.general is not None:
            why.append(self.general.message())
        return f"the gate refused {ref}: {'; '.join(why)}"

    def to_log(self) -> dict[str, Any]:
        """The log entry of a refusal: the drops that were too large, on their own or on average. `refusal_of` reads it
        back."""
        shares = {"before", "after", "correlation"}
        pooled = self.together if self.over_together else None
        return {
            "limit": self.limit,
            "refused": [
                {key: round(getattr(e, key), 6) if key in shares else getattr(e, key) for key in LOGGED}
                for e in self.blamed
            ],
            **({"together": pooled.to_json()} if pooled is not None else {}),
            **({"general": self.general.to_json()} if self.spoils_base and self.general is not None else {}),
        }

    def to_json(self) -> dict[str, Any]:
        row = {"limit": self.limit, "passed": self.passed, "effects": [effect.to_json() for effect in self.effects]}
        row |= {} if self.together is None else {"together": self.together.to_json()}
        return row if self.general is None else {**row, "general": self.general.to_json()}


def refusal_of(logged: Mapping[str, Any]) -> Decision:
    """The refusal from an entry that `Decision.to_log` wrote."""
    effects = (Effect.from_json({**row, "data": ""}) for row in logged["refused"])
    return Decision(float(logged["limit"]), tuple(effects), general_of(logged))


def general_of(gate: Mapping[str, Any]) -> BaseEffect | None:
    """The effect on general text that a gate's stored decision holds; None if it was not measured, or is damaged."""
    try:
        return BaseEffect.from_json(gate["general"])
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def as_share(metric: str, value: float) -> float:
    """A score as a share between 0 and 1: perplexity becomes the geometric mean likelihood of a token, and what is no
    number the worst score."""
    if math.isnan(value):
        return 0.0
    return 1.0 / max(1.0, value) if metric == "perplexity" else value


def decide(effects: Sequence[Effect], limit: float, general: BaseEffect | None = None) -> Decision:
    """The gate's decision on a version.

    Args:
        limit: absolute, for each task and for the mean of several.
        general: the effect on general text, which has a limit of its own.
    """
    return Decision(limit, tuple(effects), general)


def limit_of(registry: Registry, wanted: float | None) -> float:
    """How much an old task may drop: `wanted`, otherwise `max_forgetting` in hub.toml's [defaults].

    Raises:
        UsageError: `wanted` is not between 0 and 1.
        HubError: the default is not a number between 0 and 1.
    """
    if wanted is not None:
        if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 <= wanted <= 1:
            raise UsageError(
                f"--max-forgetting must be between 0 and 1, not {wanted!r}", "0.02 allows two points; 1 allows any drop"
            )
        return wanted
    found = registry.hub_file.defaults.get("max_forgetting", DEFAULT_LIMIT)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        raise HubError(
            f"{registry.path / 'hub.toml'}: max_forgetting is {found!r}, not a number between 0 and 1", "fix that line"
        )
    return float(found)
