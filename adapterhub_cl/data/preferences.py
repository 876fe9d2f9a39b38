"""Rows that say which answers are wanted: pairs of a chosen and a rejected answer, and single answers that were judged.

Read are the forms of TRL (`prompt`, `chosen`, `rejected` as texts or messages, with or without the prompt; `prompt`,
`completion` and a boolean `label`) and of LLaMA-Factory (its ranking layouts, and `kto_tag`), and columns such as
`thumb` beside a question and its answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapterhub_cl.data.guessing import LABELLED
from adapterhub_cl.data.layouts import AS_GIVEN, JUDGEMENTS, PREFERENCE_HINT, filled
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.data.remarks import short_places
from adapterhub_cl.data.turns import answers_of, messages_of, past_last_answer
from adapterhub_cl.errors import DataError
from adapterhub_cl.examples import Example, Layout

YES = ("true", "yes", "y", "up", "good", "like", "liked", "thumbs up", "thumbs_up", "👍", "1", "+1", "1.0")
NO = (
    "false",
    "no",
    "n",
    "down",
    "bad",
    "dislike",
    "disliked",
    "thumbs down",
    "thumbs_down",
    "👎",
    "0",
    "0.0",
    "-1",
    "-1.0",
)
WRITE = "write true for an answer that is wanted, and false for one that is not"


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
    if layout.name in (AS_GIVEN, *LABELLED) or not (layout.output or layout.chat):
        return layout
    judging = _judging(rows, columns, layout)
    if judging is None:
        return layout
    refuse_other_values(rows, judging, layout)
    return replace(layout, desirable=judging)


def _judging(rows: SourceRows, columns: Sequence[str], layout: Layout) -> str | None:
    """The column that judges the answers: of those with such a name the one with the largest share of judgements."""
    own = {column.strip().lower(): column for column in reversed(columns) if column != layout.output}
    if layout.choices:
        own.pop("label", None)  # the number of the right option
    shares = {}
    for column in (own[name] for name in JUDGEMENTS if name in own):
        told = [rows.rows[k].get(column) for k in _told(rows, column, layout)]
        names = rows.class_names.get(column, ())
        if told:
            shares[column] = sum(truth(value, names) is not None for value in told) / len(told)
    return max(shares, key=lambda column: shares[column], default=None)


def _told(rows: SourceRows, column: str, layout: Layout) -> list[int]:
    """The rows in which something stands in a column, beside an answer."""
    answer = layout.output or layout.chat
    assert answer is not None  # asked only of layouts with answers
    both = zip(filled(rows, column), filled(rows, answer), strict=True)
    return [k for k, (text, said) in enumerate(both) if text and said]


def refuse_other_values(rows: SourceRows, column: str, layout: Layout) -> None:
    """Raise where a column that should judge answers holds something else. What is empty is refused row by row.

    Raises:
        DataError: names the rows, or says how to go on where most values are no judgements.
    """
    names = rows.class_names.get(column, ())
    texts = filled(rows, column)
    told = _told(rows, column, layout)
    bad = [index for index in told if truth(rows.rows[index].get(column), names) is None]
    if bad and 2 * len(bad) > len(told) and layout.name != AS_GIVEN:
        raise DataError(
            f"{rows.source}: column {column!r} stands beside an answer and holds no judgements of it "
            f"({rows.where(bad[0])}: {_shown(texts[bad[0]])})",
            f"{_without(layout)}; if it judges the answers, {WRITE}",
        )
    if bad:
        count = "" if len(bad) == 1 else f"; {len(bad)} such rows: {short_places([rows.where(k) for k in bad])}"
        raise DataError(
            f"{rows.where(bad[0])}: no judgement: {_shown(texts[bad[0]])} (column {column!r}{count})",
            WRITE + ("" if layout.name == AS_GIVEN else f"; {_without(layout)}"),
        )
    if not names and {"0", "-1"} <= {texts[k].removesuffix(".0") for k in told}:
        where = rows.where(next(k for k in told if texts[k].removesuffix(".0") == "0"))
        raise DataError(f"{where}: no judgement: column {column!r} holds 0 beside -1 and 1", WRITE)


def _without(layout: Layout) -> str:
    """How the rows are read without the judgements, in words."""
    if layout.chat or layout.history or layout.tools or layout.references:
        return "to learn every answer as right, remove the column"
    given = [f"input={c}" for c in layout.input]
    given += [f"{r}={c}" for r in ("output", "instruction", "system", "choices") if (c := getattr(layout, r))]
    return f"to learn every answer as right: --columns {shlex.quote(','.join(given))}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def preferred(
    example: Example,
    row: Mapping[str, Any],
    layout: Layout,
    where: str,
    worse: str = "",
    class_names: Sequence[str] = (),
) -> Example:
    """An example with what its row says of the answer.

    Args:
        where: the row's place, for messages.
        worse: the rejected answer of a row that is no conversation.
        class_names: of a judgement that is stored as the number of a class.

    Raises:
        DataError: there is no rejected answer or no judgement, or the two answers are to different conversations.
    """
    if layout.desirable is not None:
        liked = truth(row.get(layout.desirable), class_names)
        if liked is None:
            raise DataError(
                f"{where}: no judgement (column {layout.desirable!r} holds {row.get(layout.desirable)!r})", WRITE
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


def refuse_uneven(row: Mapping[str, Any], layout: Layout, where: str) -> None:
    """Raise where the two answers of a pair are not of one kind: how they are written would tell them apart.

    Raises:
        DataError: one is a text, say, and the other a list.
    """
    if layout.rejected is None or layout.output is None or layout.chat is not None:
        return
    better, worse = (_kind(row.get(column)) for column in (layout.output, layout.rejected))
    if worse and better != worse:
        raise DataError(
            f"{where}: column {layout.output!r} holds {better} and column {layout.rejected!r} {worse}",
            "write both answers of a pair alike",
        )


def _kind(value: Any) -> str:
    """What an answer is, in words; empty for an empty cell."""
    if value is None or value != value:
        return ""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return "a text" if isinstance(value, str) else "a truth value" if isinstance(value, bool) else "a number"


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


def truth(value: Any, class_names: Sequence[str] = ()) -> bool | None:
    """A judgement as it is written; None if it is none.

    Args:
        class_names: of a column whose values are numbers of classes.
    """
    if isinstance(value, int) and not isinstance(value, bool) and class_names:
        value = class_names[value] if 0 <= value < len(class_names) else None
    if not isinstance(value, str | bool | int | float):
        return None
    text = str(value).strip().casefold()
    return True if text in YES else False if text in NO else None
