"""The three files that a shop would have: tickets, e-mails, and conversations. All of it is invented.

Every row is put together from phrases and words drawn from a seed. Some phrases, names and products are kept for the
test rows, so that what is asked there was never seen in these words.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shop_bookings import booking
from shop_draws import DevDraw
from shop_emails import email
from shop_talks import talk
from shop_tickets import ticket

Row = dict[str, Any]
Made = Callable[[random.Random, bool], Row]
MAKERS: dict[str, Made] = {"tickets": ticket, "emails": email, "talks": talk, "bookings": booking}
FILES = {"tickets": "tickets.csv", "emails": "emails.jsonl", "talks": "conversations.jsonl"}


def rows(name: str, seed: int, train: int, tests: int, *, dev: bool = False) -> tuple[list[Row], list[Row]]:
    """Training rows and test rows of a file; no two rows of one file ask the same.

    Args:
        name: one of `MAKERS`.
        train: how many training rows; `tests` test rows.
        dev: rows for choosing settings, see `DevDraw`.
    """
    draw = (DevDraw if dev else random.Random)(f"three files {name} {seed}")
    seen: set[str] = set()
    return tuple(_drawn(MAKERS[name], draw, seen, count, held) for count, held in ((train, False), (tests, True)))  # type: ignore[return-value]


def _drawn(make: Made, draw: random.Random, seen: set[str], count: int, held: bool) -> list[Row]:
    found: list[Row] = []
    for _ in range(100 * count + 1):
        if len(found) == count:
            return found
        row = make(draw, held)
        key = asked(row)
        if key not in seen:
            seen.add(key)
            found.append(row)
    raise ValueError(f"only {len(found)} different rows of {count} could be drawn")


def asked(row: Row) -> str:
    """What a row asks, to tell rows apart: of a conversation all that the customer says."""
    if "messages" in row:
        return "\n".join(turn["content"] for turn in row["messages"] if turn["role"] == "user")
    return str(row.get("text") or row["input"])


def write(folder: Path, seed: int, train: int, tests: int) -> None:
    """`tickets.csv`, `emails.jsonl`, `conversations.jsonl`, and for each the test rows in `NAME.test.…`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in FILES.items():
        for part, found in zip(("", "test."), rows(name, seed, train, tests), strict=True):
            stem, _, ending = file.partition(".")
            (folder / f"{stem}.{part}{ending}").write_text(written(found, ending), encoding="utf-8")


def written(found: Sequence[Row], ending: str) -> str:
    if ending == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    out = io.StringIO()
    table = csv.DictWriter(out, list(found[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    return out.getvalue()
