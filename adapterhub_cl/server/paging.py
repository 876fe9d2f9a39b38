"""Lists in OpenAI's form, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterhub_cl.server.failing import Refused


def page_after(rows: Sequence[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    """The rows that follow the one with the id `after`, at most `limit` of them.

    Args:
        rows: all of them, in order; each has an `id`.

    Raises:
        Refused: no row has that id.
    """
    begin = 0
    if after:
        ids = [row["id"] for row in rows]
        if after not in ids:
            raise Refused(400, f"after: there is no {after[:80]!r} in this list", "invalid_request", "after")
        begin = ids.index(after) + 1
    shown = list(rows[begin : begin + limit])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": begin + limit < len(rows),
    }
