"""Decides on a canary by what users said of its answers and of those beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.loop.incident import incident
from adapterhub_cl.traffic.journal import Judged

LEVEL = 0.05  # of Fisher's exact test, one-sided: is the canary right less often?
SLACK = 0.05  # a canary that is right this much less often, by chance or not, waits for more answers
PATIENCE = 3  # times the wanted number of judged answers, after which it must have shown that it is as good
PROMOTE, ROLL_BACK, WAIT = "promote", "roll back", "wait"


@dataclass(frozen=True)
class RightCount:
    """How many judged answers were right."""

    right: int
    judged: int

    @property
    def share(self) -> float:
        return self.right / self.judged if self.judged else 0.0

    @classmethod
    def of(cls, judged: Sequence[Judged], ref: str) -> RightCount:
        """The judged answers of one version."""
        said = [one.said.good for one in judged if one.kept.ref == ref and one.said.good is not None]
        return cls(sum(said), len(said))

    def __str__(self) -> str:
        return f"{self.right} of {self.judged} right"


def reliable(judged: Sequence[Judged], beside: str) -> list[Judged]:
    """The judged answers without those of a time in which users suddenly found far more wrong answers of the version
    beside the canary (see `loop.incident`): they would count against the version that answered more in that time.

    Args:
        judged: oldest first.
    """
    known = [one for one in judged if one.kept.ref == beside and one.said.good is not None]
    seen = incident([not one.said.good for one in known])
    if seen is None:
        return list(judged)
    first, last = known[seen.start].kept.at, known[seen.stop - 1].kept.at
    return [one for one in judged if not first <= one.kept.at <= last]


def decide(canary: RightCount, beside: RightCount, enough: int, *, odd: bool = False) -> tuple[str, str]:
    """What to do with a canary, and why.

    It is rolled back as soon as it is right less often beyond chance (Fisher's exact test, p < 0.05). It is promoted
    once `enough` of its answers were judged and it is right at most 5 points less often; one that lies below that
    without being worse beyond chance gets three times as many answers.

    Args:
        beside: the version that answers the other requests, in the same time.
        enough: judged answers of the canary.
        odd: users find far more wrong answers than the version beside it should give. What they say may be wrong, so a
            canary that is not better beyond chance gets three times as many answers as well.
    """
    both = f"the canary {canary}, the version beside it {beside}"
    if canary.judged and beside.judged:
        p = _by_chance(canary, beside, "less")
        if p < LEVEL:
            return ROLL_BACK, f"{both}: worse beyond chance (p = {p:.3f})"
    if canary.judged < enough or not beside.judged:
        missing = f"{canary.judged} of {enough} judged answers" if canary.judged < enough else "nothing to compare with"
        return WAIT, f"{both}: {missing}"
    if canary.share >= beside.share - SLACK:
        if not odd or canary.judged >= PATIENCE * enough or _by_chance(canary, beside, "greater") < LEVEL:
            return PROMOTE, both
        return WAIT, f"{both}: far more wrong answers than expected, so more of them are waited for"
    if canary.judged < PATIENCE * enough:
        return WAIT, f"{both}: lower, but perhaps by chance"
    return ROLL_BACK, f"{both}: lower after {canary.judged} judged answers"


def _by_chance(canary: RightCount, beside: RightCount, than: str) -> float:
    """How likely chance makes a canary right so much `less` or `greater` often (Fisher's exact test, one-sided)."""
    from scipy.stats import fisher_exact

    table = [[one.right, one.judged - one.right] for one in (canary, beside)]
    return float(fisher_exact(table, alternative=than).pvalue)


def decide_late(canary: RightCount, beside: RightCount, gain: Mapping[str, Any], days: float) -> tuple[str, str]:
    """What to do with a canary that too few users judged in the time that it had, and why: the rows held back decide,
    unless the few answers that were judged speak against it.

    Args:
        gain: `before` and `after` on the `rows` held back, which may be none.
        days: how long it has been a canary.
    """
    few = f"{canary.judged} of its answers were judged in {days:.0f} days"
    if not gain.get("rows"):
        return ROLL_BACK, f"{few}, and no rows were held back that could say whether it is better"
    held = f"{gain['before']:.3f} → {gain['after']:.3f} on {gain['rows']} rows held back"
    if canary.judged and beside.judged and canary.share < beside.share - SLACK:
        return ROLL_BACK, f"{few}: {canary}, and {beside} of the version beside it; {held}"
    return (PROMOTE if gain["after"] >= gain["before"] else ROLL_BACK), f"{few}; {held}"
