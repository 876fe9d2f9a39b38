"""The columns of a source, read as those that a task has learned."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from adapterhub_cl.data.layouts import recognise, unread
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.errors import DataError
from adapterhub_cl.examples import REMEMBERED
from adapterhub_cl.types import Layout


def layout_of(rows: SourceRows, columns: Sequence[str], known: Sequence[Layout], *, answers: bool) -> Layout | None:
    """The first layout that tasks have learned and that a source has the columns of, or the one that its columns are
    recognised as; None if they are not.

    A layout that would leave a part of the question unread gives way to another one, or to one that reads the same
    columns and more.

    Args:
        known: of the tasks that are asked, their older ones behind them.
        answers: whether the answers must be there too.

    Raises:
        DataError: the source lacks a part of the question that the only task has learned.
    """
    learned = [*known, *(older for one in known for older in one.older)]
    fitting = [(one, fit) for one in learned if (fit := fits(one, columns, answers=answers))]
    for _, fit in fitting:
        if not unread(rows, columns, fit):
            return fit
    if fitting:
        one, fit = fitting[0]
        return _wider(rows, columns, one, answers) or fit  # of which `unused` says what it would leave out
    seen = recognise(columns, answers=answers)
    if len(known) == 1:
        _refuse_half(rows, columns, learned, seen)
    return seen


def _wider(rows: SourceRows, columns: Sequence[str], learned: Layout, answers: bool) -> Layout | None:
    """The layout of the same name that reads every part of the question; None if there is none."""
    beside = [c for c in (learned.output, learned.completion) if c and c not in columns]
    seen = recognise([*columns, *beside])
    found = fits(seen, columns, answers=answers) if seen is not None and seen.name == learned.name else None
    return found if found is not None and not unread(rows, columns, found) else None


def fits(layout: Layout, columns: Sequence[str], *, answers: bool = True) -> Layout | None:
    """A learned layout with the names and limited to the columns of a source; None if a column that belongs to the
    question is missing. Case and spaces around names are ignored.

    Args:
        answers: whether the answers must be there too.
    """
    if layout.name == "raw text":
        return None
    layout = _called(layout, columns)
    asked = (*layout.input, *([layout.chat] if layout.chat else []))
    if not asked and layout.instruction:
        asked = (layout.instruction,)
    there: set[str | None] = set(columns)
    if layout.fields:  # what they are called together is no column, but is there if all of them are
        whole = there.issuperset(layout.fields)
        there = there | {layout.output} if whole else there - {layout.output}
    needed = (layout.output, layout.rejected, layout.desirable) if answers else ()
    if not asked or not there.issuperset(asked) or any(column and column not in there for column in needed):
        return None
    kept = ("name", "input", "chat", "fields", "older")
    missing = {n: None for n in layout.__dataclass_fields__ if n not in kept and getattr(layout, n) not in there}
    return replace(layout, **missing, fields=layout.fields if layout.output in there else (), older=())  # type: ignore[arg-type]


def _called(layout: Layout, columns: Sequence[str]) -> Layout:
    """A layout with the names of a source."""
    own = {column.strip().lower(): column for column in reversed(columns)}

    def name(column: str) -> str:
        return column if column in columns else own.get(column.strip().lower(), column)

    def names(them: Iterable[str]) -> tuple[str, ...]:
        return tuple(map(name, them))

    several = ("name", "input", "fields", "older", *(["output"] if layout.fields else []))
    one: dict[str, Any] = {
        n: name(c) for n in layout.__dataclass_fields__ if n not in several and (c := getattr(layout, n))
    }
    return replace(layout, **one, input=names(layout.input), fields=names(layout.fields))


def _refuse_half(rows: SourceRows, columns: Sequence[str], learned: Sequence[Layout], seen: Layout | None) -> None:
    """Raise where only some of the columns are there that make a question together."""
    for one in (_called(layout, columns) for layout in learned):
        there = [column for column in one.input if column in columns]
        if there and len(there) < len(one.input):
            lacks = " and ".join(repr(column) for column in one.input if column not in columns)
            told = ",".join(f"input={column}" for column in there)
            told += f",output={seen.output}" if seen is not None and seen.output else ""
            raise DataError(
                f"{rows.source}: there is no column {lacks}, and the task was trained on "
                + " and ".join(map(repr, one.input)),
                f"add it; or, if the rest is the whole question: --columns {shlex.quote(told)}",
            )


def carried(before: Layout, read: Layout) -> Layout:
    """The layout of a task that goes on reading the columns that it read elsewhere, and reads the rows that it has
    learned here as they were read.

    Args:
        before: the layout that the task has elsewhere.
        read: that of the rows here.
    """
    if before.covers(read):
        return before
    same = fits(before, read.columns)
    if same is not None and (same.input, same.output, same.chat) != (read.input, read.output, read.chat):
        return read.after(before)  # the same names with other roles: what was learned here goes first
    return replace(before, older=(replace(read, older=()), *before.older)[:REMEMBERED])
