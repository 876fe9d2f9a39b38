"""The rise of the base's loss on general text that a version causes, with its interval. Pure functions, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapterhub_cl.evaluation.intervals import Z


@dataclass(frozen=True)
class BaseEffect:
    """The effect of a version on the base's loss on general text, in nats per token.

    Attributes:
        data: where the text came from; `sha256` is of its bytes.
        before: loss of the base without any adapter.
        after: loss of the version.
        interval: 95 % interval of the rise, by the differences of the passages.
        limit: the largest accepted rise; None accepts any.
    """

    data: str
    sha256: str
    passages: int
    tokens: int
    before: float
    after: float
    interval: tuple[float, float]
    limit: float | None = None

    @property
    def rise(self) -> float:
        return self.after - self.before

    @property
    def refused(self) -> bool:
        """Whether the rise is above the limit, and significant."""
        return self.limit is not None and self.rise > self.limit and self.interval[0] > 0

    def describe(self) -> str:
        """`2.914 → 2.987 (+0.073 nats per token, 95 % +0.051 to +0.095)`."""
        low, high = self.interval
        return f"{self.before:.3f} → {self.after:.3f} ({self.rise:+.3f} nats per token, 95 % {low:+.3f} to {high:+.3f})"

    def message(self) -> str:
        """Why a version is refused."""
        return f"its loss on general text rises by more than {self.limit:g}: {self.describe()}"

    def to_json(self) -> dict[str, Any]:
        row = asdict(self) | {"rise": self.rise}
        numbers = {key: round(row[key], 6) for key in ("before", "after", "rise")}
        return row | numbers | {"interval": [round(end, 6) for end in self.interval]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> BaseEffect:
        found = {key: row[key] for key in cls.__dataclass_fields__ if key in row}
        return cls(**{**found, "interval": (float(row["interval"][0]), float(row["interval"][1]))})


def compared(before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]]) -> tuple[float, float, float]:
    """The rise of the loss of a token, and its 95 % interval.

    A ratio estimate over passages: both models read the same tokens, so what differs between passages cancels out.

    Args:
        before: for each passage the summed loss in nats, and the number of tokens; `after` likewise.
    """
    tokens = sum(n for _, n in before)
    drops = [now - was for (was, _), (now, _) in zip(before, after, strict=True)]
    rise = math.fsum(drops) / tokens
    count = len(drops)
    if count < 2:
        return rise, -math.inf, math.inf
    spread = math.fsum((d - rise * n) ** 2 for d, (_, n) in zip(drops, before, strict=True)) / (count - 1)
    half = Z * math.sqrt(count * spread) / tokens
    return rise, rise - half, rise + half
