"""Numbers, sizes and times as a report writes them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import PurePath

from adapterhub_cl.errors import count as count
from adapterhub_cl.showing import size as size

NOTHING = "–"


def score(value: float | None) -> str:
    """A share: `0.646`."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.3f}"


def change(value: float | None) -> str:
    """A difference with its sign: `+0.012`, `−0.125`, `0.000`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{abs(value):.3f}"
    return text if not float(text) else f"{'−' if value < 0 else '+'}{text}"


def percent(value: float | None) -> str:
    """A share in percent: `97.5 %`."""
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def error(value: float | None) -> str:
    """A relative error with four significant digits."""
    return NOTHING if value is None or not math.isfinite(value) else "0" if value == 0 else f"{value:.4g}"


def moment(at: str) -> str:
    """An ISO time in UTC, to the minute: `2026-03-01 14:05`; any other text is unchanged."""
    try:
        then = datetime.fromisoformat(at)
    except ValueError:
        return at
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return then.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def place(text: str) -> str:
    """The last part of a path, because a report should not reveal folders of a disk. A Hub id is unchanged."""
    path = PurePath(text)
    return path.name if path.is_absolute() or text.startswith(("./", "../", "~")) else text


def relation(text: str) -> str:
    """`merged_from` → `merged from`."""
    return text.replace("_", " ")
