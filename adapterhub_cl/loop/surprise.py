"""Whether users find more wrong answers than a version's own score lets expect: the task has drifted, or what they say
is not to be trusted. The gate tells these apart: after poison, the held-out rows are lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapterhub_cl.registry import Registry
from adapterhub_cl.traffic.journal import Judged

LEVEL = 0.01
EXACT = ("accuracy", "exact_match")


@dataclass(frozen=True)
class Surprise:
    """How often answers were called wrong, and how often they should be.

    Attributes:
        wrong: of `judged` answers.
        expected: share of wrong answers on the held-out rows.
        p_value: of at least as many wrong ones (one-sided binomial test).
    """

    wrong: int
    judged: int
    expected: float
    p_value: float

    @property
    def surprising(self) -> bool:
        return self.p_value < LEVEL

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "surprising": self.surprising, "told": str(self)}

    def __str__(self) -> str:
        share = self.wrong / self.judged
        return f"{share:.0%} of {self.judged} judged answers were wrong, {self.expected:.0%} on the held-out rows"


def surprise(registry: Registry, task: str, judged: Sequence[Judged]) -> Surprise | None:
    """Compare what users said with the score of the version that serves; None where there is no such score, or nothing
    was said of that version's answers."""
    ref = registry.serving().get(task)
    if ref is None:
        return None
    said = [one.said.good for one in judged if one.kept.ref == ref and one.said.good is not None]
    scores = registry.get(ref).metrics
    score = next((float(scores[name]) for name in EXACT if name in scores), None)
    if score is None or not said:
        return None
    from scipy.stats import binomtest

    wrong, expected = said.count(False), min(max(1 - score, 0.01), 0.99)
    p = float(binomtest(wrong, len(said), expected, alternative="greater").pvalue)
    return Surprise(wrong, len(said), expected, p)
