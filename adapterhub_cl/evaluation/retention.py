"""Retention: a derived adapter's score on a task, as a share of the score of the adapter trained for it; and the gate
for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.evaluation.base_effect import BaseEffect
from adapterhub_cl.evaluation.gate import Effect


def retention(effect: Effect) -> float:
    """Score after ÷ score before; 1 if there was nothing to retain."""
    return effect.after / effect.before if effect.before > 0 else 1.0


@dataclass(frozen=True)
class Retained:
    """What a merge, a distillation or a pruning retained, and the gate's decision.

    Attributes:
        least: the lowest accepted retention of a task; None accepts everything.
        effects: for each task the scores of its parent and of the new version, on the same examples.
        general: the effect on text that no task owns; None if that was not measured.
    """

    least: float | None
    effects: tuple[Effect, ...]
    general: BaseEffect | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Task → retention."""
        return {effect.task: retention(effect) for effect in self.effects}

    @property
    def lowest(self) -> float | None:
        """The retention of the task that lost most; None if nothing was measured."""
        return min(self.shares.values(), default=None)

    @property
    def refused(self) -> tuple[Effect, ...]:
        """The effects below the limit, the worst first."""
        if self.least is None:
            return ()
        return tuple(sorted((e for e in self.effects if retention(e) < self.least), key=retention))

    @property
    def passed(self) -> bool:
        return not self.refused and not self.spoils_base

    @property
    def spoils_base(self) -> bool:
        """Whether the loss on general text rises by more than it may."""
        return self.general is not None and self.general.refused

    def message(self, ref: str) -> str:
        """One line: which tasks retain too little; and what the base forgot, if that is too much."""
        why = []
        if self.refused:
            told = (f"{e.task} {retention(e):.3f} ({e.before:.3f} → {e.after:.3f}, n {e.n})" for e in self.refused)
            why.append(f"it retains less than {self.least:g} of {'; '.join(told)}")
        if self.spoils_base and self.general is not None:
            why.append(self.general.message())
        return f"the gate refused {ref}: {'; '.join(why)}"

    def to_json(self) -> dict[str, Any]:
        """The value stored in the manifest under `gate`."""
        effects: Sequence[dict[str, Any]] = [e.to_json() for e in self.effects]
        row = {"min_retention": self.least, "passed": self.passed, "effects": effects}
        return row if self.general is None else {**row, "general": self.general.to_json()}

    def shares_json(self) -> dict[str, float]:
        """Task → retention, as printed in answers."""
        return {task: round(share, 6) for task, share in self.shares.items()}
