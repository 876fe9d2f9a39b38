"""Rows that say which answers are wanted: pairs of a chosen and a rejected answer, and single answers that were judged.

Read are the forms of TRL (`prompt`, `chosen`, `rejected` as texts or messages, with or without the prompt; `prompt`,
`completion` and a boolean `label`) and of LLaMA-Factory (its ranking layouts, and `kto_tag`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapterhub_cl.data.layouts import JUDGED, PREFERENCE_HINT
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.data.turns import answers_of, messages_of, past_last_answer
from adapterhub_cl.errors import DataError
from adapterhub_cl.examples import Example, Layout

YES = (True, "true", "True", "TRUE", "1")
NO = (False, "false", "False", "FALSE", "0")


def with_preferences(rows: SourceRows, columns: Sequence[str], layout: Layout) -> Layout:
    """The layout with the columns that say which answers are wanted, as far as the names alone do not tell.

    Args:
        columns: of the source.
        layout: as the names tell it.
    """
    if layout.rejected:
        better = layout.completion or layout.output or layout.chat
        first: Any = next((row[better] for row in rows.rows if better and row.get(better)), None)
        if layout.chat == better and isinstance(first, str) and not first.lstrip().startswith("["):
            raise DataError(f"{rows.source}: no column has the question of the pairs", PREFERENCE_HINT)
        whole = isinstance(first, list | tuple) and bool(first) and isinstance(first[0], Mapping)
        role = str(first[0].get("role", first[0].get("from"))) if whole else ""
        if role and (role not in ("assistant", "gpt") or len(first) > 1):  # both answers stand in whole conversations
            return Layout("messages", chat=better, rejected=layout.rejected, tools=layout.tools)
        return layout
    own = {column.strip().lower(): column for column in reversed(columns)}
    for names in JUDGED if layout.output or layout.chat else ():
        if set(names) <= set(own):
            judged = own[names[-1]]
            told = [row.get(judged) for row in rows.rows]
            if any(value is not None for value in told) and all(v is None or _truth(v) is not None for v in told):
                return replace(layout, desirable=judged)
    return layout


def preferred(example: Example, row: Mapping[str, Any], layout: Layout, where: str, worse: str = "") -> Example:
    """An example with what its row says of the answer.

    Args:
        where: the row's place, for messages.
        worse: the rejected answer of a row that is no conversation.

    Raises:
        DataError: there is no rejected answer or no judgement, or the two answers are to different conversations.
    """
    if layout.desirable is not None:
        liked = _truth(row.get(layout.desirable))
        if liked is None:
            raise DataError(
                f"{where}: no judgement (column {layout.desirable!r} holds {row.get(layout.desirable)!r})",
                "write true for an answer that is wanted, and false for one that is not",
            )
        return replace(example, desirable=liked)
    assert layout.rejected is not None  # asked only of layouts that say which answers are wanted
    if layout.chat is not None:
        worse = _other_answer(example, row, layout, where)
    if not worse.strip():
        raise DataError(
            f"{where}: no rejected answer (column {layout.rejected!r} is empty)", "complete or remove these rows"
        )
    return replace(example, rejected=worse)


def _other_answer(example: Example, row: Mapping[str, Any], layout: Layout, where: str) -> str:
    """The rejected answer of a conversation."""
    assert layout.rejected is not None
    assert layout.chat is not None
    if layout.completion:
        said = answers_of(row.get(layout.rejected), where, layout.rejected)
    else:
        better = messages_of(row.get(layout.chat), where, layout.chat)
        said = messages_of(row.get(layout.rejected), where, layout.rejected)
        before = max(0, past_last_answer(better) - 1)
        if said and better[:before] != said[:before]:
            raise DataError(
                f"{where}: the chosen and the rejected answer do not end the same conversation",
                "give both the same turns before the last one",
            )
        said = said[before:]
    if example.calls or any(turn.get("tool_calls") for turn in said):
        raise DataError(f"{where}: a preference pair that calls tools cannot be learned", "remove these rows")
    if len(said) > 1:
        raise DataError(
            f"{where}: the rejected answer is {len(said)} messages long", "a pair differs in one answer, the last one"
        )
    return str(said[0]["content"]) if said else ""


def _truth(value: Any) -> bool | None:
    """A judgement as it is written; None if it is none."""
    if isinstance(value, str | bool | int):
        return True if value in YES else False if value in NO else None
    return None
