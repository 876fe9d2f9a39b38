"""What the user should know of how rows were read, and of rows that may be mistakes: one line for each remark."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

from adapterhub_cl.data.guessing import LABELLED
from adapterhub_cl.data.turns import answers_of, messages_of, past_last_answer
from adapterhub_cl.examples import SYSTEM, Example, Layout, is_learned


class Heard:
    """What happened to the rows of a source while they were read.

    Args:
        layout: the columns that are read.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.written: dict[str, str] = {}  # a number or a boolean as the source has it → as text
        self.spaced: list[str] = []
        self.trailing: list[str] = []
        self.twice: dict[str, list[str]] = {"assistant": [], "user": []}  # that role speaks twice in a row
        self.unasked: list[str] = []  # that begin with an answer
        self.midway: list[str] = []  # with a system message behind the first message
        self.first = ""
        self.alike: list[str] = []  # pairs whose two answers are the same, which are left out

    def row(self, row: Mapping[str, Any], where: str) -> None:
        """Take a row into account."""
        if self.layout.chat:
            messages = messages_of(row.get(self.layout.chat), where, self.layout.chat)
            if self.layout.completion:
                messages += answers_of(row.get(self.layout.completion), where, self.layout.completion)
            if 0 < past_last_answer(messages) < len(messages):
                self.trailing.append(where)
            roles = [message["role"] for message in messages]
            system = self.layout.system and str(row.get(self.layout.system) or "").strip()
            if messages and is_learned(messages[0]) and not system:
                self.unasked.append(where)
            if any(role in SYSTEM for role in roles[1:]):
                self.midway.append(where)
            for role, places in self.twice.items():
                if (role, role) in pairwise(roles):
                    places.append(where)
            return
        value = row.get(self.layout.output) if self.layout.output else None
        if isinstance(value, bool) or (
            isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value)
        ):
            self.first = self.first or where
            text = json.dumps(value) if isinstance(value, bool) else str(int(value))
            self.written.setdefault(str(value), text)
        elif isinstance(value, str) and value != value.strip() and self.layout.name in LABELLED:
            self.spaced.append(where)

    def remarks(self, empty: Sequence[str]) -> tuple[str, ...]:
        """All remarks.

        Args:
            empty: the places of rows without content.
        """
        found = []
        if empty:
            found.append(f"note: {_rows(empty, 'empty row')} skipped ({places_of(empty)})")
        if self.alike:
            what = _rows(self.alike, "pair")
            found.append(f"note: {what} left out: chosen and rejected are the same ({places_of(self.alike)})")
        if self.written:
            pairs = ", ".join(f"{value} → {text!r}" for value, text in list(self.written.items())[:4])
            found.append(f"note: column {self.layout.output!r} is read as text: {pairs} (first: {self.first})")
        if self.spaced:
            them = "it" if len(self.spaced) == 1 else "them"
            read = f"{_rows(self.spaced, 'label')} read without the spaces around {them}"
            found.append(f"note: {read} ({places_of(self.spaced)})")
        if self.trailing:
            found.append(
                f"note: {_rows(self.trailing, 'conversation')} not read to the end: what follows the last answer that "
                f"is to be learned is left out ({places_of(self.trailing)})"
            )
        for role, places in self.twice.items():
            if places:
                found.append(f"note: {_have(places)} two messages of the {role} in a row ({places_of(places)})")
        if self.unasked:
            begins = "conversation begins" if len(self.unasked) == 1 else "conversations begin"
            found.append(
                f"note: {len(self.unasked)} {begins} with the assistant's turn, which is not learned, because nothing "
                f"asks for it ({places_of(self.unasked)})"
            )
        if self.midway:
            what = "a system message that is not the first message"
            found.append(f"note: {_have(self.midway)} {what} ({places_of(self.midway)})")
        return tuple(found)


def tell_repeats(examples: Sequence[Example], places: Sequence[str], kind: str, *, facts: bool = False) -> list[str]:
    """Remarks about questions that occur several times, with the same answer or with different ones.

    Args:
        places: of the examples.
        kind: of the task.
    """
    seen: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    again: list[int] = []
    other: list[tuple[int, int]] = []
    for k, example in enumerate(examples):
        if not example.input or example.prefers:  # a question may well be asked in several pairs
            continue
        known = seen[(example.instruction, example.text, example.tools)]
        answer = example.answer or ""
        if answer in known:
            again.append(k)
        elif known:
            other.append((next(iter(known.values())), k))
        known.setdefault(answer, k)
    found = []
    if again:
        occur = "it occurs" if len(again) == 1 else "they occur"
        found.append(
            f"note: {_rows([places[k] for k in again], 'row')} repeated with the same answer, and learned as often as "
            f"{occur} ({places_of([places[k] for k in again])})"
        )
    if other:
        one, two = other[0]
        many = len(other) > 1
        what = f"{len(other)} rows ask" if many else "1 row asks"
        one_answer = "a fact" if facts else "a choice" if kind == "choice" else ""
        hint = "right answers beside the first one belong into a column 'references'"
        if one_answer:
            hint = f"{one_answer} has one right answer: correct the rows"
        found.append(
            f"{'warning' if one_answer else 'note'}: {what} what another row asks, with another answer (first: "
            f"{places[one]} has {_short(examples[one].answer)}, {_short_place(places[two])} has "
            f"{_short(examples[two].answer)}); {hint}"
        )
    return found


def _rows(places: Sequence[str], what: str) -> str:
    return f"1 {what} is" if len(places) == 1 else f"{len(places)} {what}s are"


def _have(places: Sequence[str]) -> str:
    return "1 conversation has" if len(places) == 1 else f"{len(places)} conversations have"


def places_of(places: Sequence[str]) -> str:
    """The first five of several places: `train.jsonl line 7, 9, 12, …`"""
    named = ", ".join([places[0], *(_number(place) for place in places[1:5])])
    return f"{named}, …" if len(places) > 5 else named


def short_places(places: Sequence[str]) -> str:
    """The same without the source: `line 7, 9, 12, …`."""
    return places_of([_short_place(places[0]), *places[1:]])


def _number(place: str) -> str:
    return place.rpartition(" ")[2]


def _short_place(place: str) -> str:
    return " ".join(place.rsplit(" ", 2)[-2:])


def _short(text: str | None) -> str:
    return repr(text if len(text or "") <= 40 else f"{(text or '')[:40]}…")
