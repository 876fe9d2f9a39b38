"""How much space all replay samples of a hub may use, and how it is divided. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.errors import UsageError

_UNITS = {"": 0, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_HINT = "a number of samples, such as 2000, or a size, such as 500kB or 2MB; none for no limit"


@dataclass(frozen=True)
class Budget:
    """The limit for the samples of all adapters together.

    Attributes:
        amount: how many.
        unit: `samples` or `bytes`.
    """

    amount: int
    unit: str

    def __str__(self) -> str:
        if self.unit == "samples":
            return str(self.amount)
        for name, factor in (("GB", 1000**3), ("MB", 1000**2), ("kB", 1000)):
            if self.amount and self.amount % factor == 0:
                return f"{self.amount // factor}{name}"
        return f"{self.amount}B"


def parse_budget(value: Any) -> Budget | None:
    """`2000` → samples, `"2MB"` → bytes (units of 1000), `"none"` or None → no limit.

    Raises:
        UsageError: the value is neither a number of samples nor a size.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    text = str(value).strip()
    found = re.fullmatch(r"(\d{1,15})(\.\d+)?\s*(|b|kb|mb|gb)", text.lower(), re.ASCII)
    if found is None or isinstance(value, bool) or (found[2] and found[3] in ("", "b")):
        raise UsageError(f"{text!r} is not a replay budget", _HINT)
    if not found[3]:
        return Budget(int(found[1]), "samples")
    return Budget(int(float(found[1] + (found[2] or "")) * _UNITS[found[3]] + 0.5), "bytes")


def shares(wanted: Mapping[str, int], total: int) -> dict[str, int]:
    """Divide a total into equal shares; what one does not need goes to the others (water-filling).

    Args:
        wanted: name → the most that it can use.

    Returns:
        name → its share, in the order of `wanted`. Together they are the smaller of `total` and what is wanted;
        limited shares differ by at most one, and the earlier names get the extra one.
    """
    left, given = max(0, total), dict.fromkeys(wanted, 0)
    order = sorted(wanted, key=wanted.__getitem__)
    for place, name in enumerate(order):
        equal = left // (len(order) - place)
        if wanted[name] > equal:  # the same holds for all names after it, so all of them are limited
            unfilled = [n for n in wanted if n in set(order[place:])]
            level, rest = divmod(left, len(unfilled))
            for n in unfilled:
                given[n] = min(wanted[n], level + (1 if rest > 0 else 0))
                rest -= 1
            break
        given[name] = wanted[name]
        left -= wanted[name]
    return given


def fitting(sizes: Sequence[int], share: int, unit: str) -> int:
    """How many of the first items fit into a share: of samples, or of bytes by their sizes."""
    if unit == "samples":
        return min(len(sizes), share)
    used = 0
    for count, size in enumerate(sizes):
        used += size
        if used > share:
            return count
    return len(sizes)
