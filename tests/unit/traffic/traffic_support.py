"""Answers as a server keeps them."""

from __future__ import annotations

from typing import Any

from adapterhub_cl.traffic.journal import Judged, KeptAnswer, Said
from adapterhub_cl.types import Example


def answer(number: int, text: str = "", **about: Any) -> KeptAnswer:
    """The `number`-th answer of the task `news`."""
    usual: dict[str, Any] = {
        "id": f"a-{number}",
        "at": f"2026-11-{1 + number // 1440:02}T{number // 60 % 24:02}:{number % 60:02}:00.000+00:00",
        "task": "news",
        "ref": "news@v1",
        "example": Example(text or f"text number {number}"),
        "answer": "sports",
        "confidence": 0.5,
        "routing": 0.9,
        "out_of_distribution": False,
    }
    return KeptAnswer(**{**usual, **about})


def judged(number: int, text: str, right: str | None, good: bool | None = False, **about: Any) -> Judged:
    kept = answer(number, text, **about)
    return Judged(kept, Said(kept.id, good, right, kept.task))
