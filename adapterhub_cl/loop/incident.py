"""A stretch of time in which users contradict the version that serves far more often than before and after it.

Drift stays, and what spoils feedback for a while (a broken form, somebody who clicks at random, an attack) ends. So
rows of a stretch that has ended are set aside, and those of one that may go on wait until it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FEWEST = 10  # rows of a stretch, and rows before and after it that show that it has ended
LEVEL = 0.02
DRAWS = 999
BOUNDARIES = 100  # places where a stretch may begin or end


@dataclass(frozen=True)
class Incident:
    """The stretch.

    Attributes:
        start, stop: its rows, as a slice of all rows in the order in which they came.
        wrong, wrong_elsewhere: share of the rows in it, and of all others, whose right answer, as users say, is another
            one than the version gives.
        over: whether enough rows came after it.
        p_value: how often a random order of the rows has a stretch as conspicuous as this one.
        since, until: when the first and the last answer of it were judged.
    """

    start: int
    stop: int
    wrong: float
    wrong_elsewhere: float
    over: bool
    p_value: float
    since: str = ""
    until: str = ""

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rows": self.rows, "told": str(self)}

    def __str__(self) -> str:
        when = f" judged from {self.since} to {self.until}" if self.since else ""
        return (
            f"{self.rows} rows{when}: users contradict {self.wrong:.0%} of the answers to them, and "
            f"{self.wrong_elsewhere:.0%} of the others"
        )


def incident(wrong: Sequence[bool]) -> Incident | None:
    """The most conspicuous stretch of rows with more wrong answers than elsewhere, or None if chance explains it.

    Kulldorff's scan statistic for a Bernoulli process (1997), tested by drawing orders of the rows at random.

    Args:
        wrong: for each row, in the order in which they came, whether the version answers it wrongly.
    """
    import numpy as np

    n, total = len(wrong), sum(wrong)
    if n < 2 * FEWEST or total in (0, n):
        return None
    places = np.unique(np.linspace(0, n, min(n, BOUNDARIES) + 1).round().astype(int))
    starts, stops = (x.ravel() for x in np.meshgrid(places, places, indexing="ij"))
    fits = (stops - starts >= FEWEST) & (n - (stops - starts) >= FEWEST)
    starts, stops = starts[fits], stops[fits]

    def ratios(orders: Any) -> Any:
        """Log-likelihood ratio of each stretch, `[orders, stretches]`."""
        counts = np.concatenate([np.zeros((len(orders), 1)), np.cumsum(orders, axis=1)], axis=1)
        inside, size = counts[:, stops] - counts[:, starts], stops - starts
        outside, rest = total - inside, n - size
        gain = _likelihood(inside, size) + _likelihood(outside, rest) - _likelihood(np.array(total), n)
        return np.where(inside / size > outside / rest, gain, 0.0)

    found = ratios(np.array([wrong], dtype=float))[0]
    best = int(found.argmax())
    draw = np.random.default_rng(0)
    orders = draw.permuted(np.tile(np.array(wrong, dtype=float), (DRAWS, 1)), axis=1)
    likelier = sum(int((ratios(part).max(axis=1) >= found[best]).sum()) for part in np.array_split(orders, 20))
    p = (1 + likelier) / (1 + DRAWS)
    if p > LEVEL:
        return None
    start, stop = int(starts[best]), int(stops[best])
    inside = sum(wrong[start:stop])
    elsewhere = (total - inside) / (n - (stop - start))
    return Incident(start, stop, inside / (stop - start), elsewhere, n - stop >= FEWEST, p)


def _likelihood(hits: Any, of: Any) -> Any:
    """Log-likelihood of `hits` of `of` at the rate that they have; 0·log 0 is 0."""
    from scipy.special import xlogy

    return xlogy(hits, hits / of) + xlogy(of - hits, 1 - hits / of)
