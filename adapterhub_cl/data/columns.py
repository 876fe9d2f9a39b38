"""Rows → examples, by the layout of their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub_cl.data.guessing import LABELLED
from adapterhub_cl.data.layouts import (
    AS_GIVEN,
    NOTES,
    Columns,
    filled,
    override,
    proposal,
    refuse_preferences,
    unrecognised,
    unused,
)
from adapterhub_cl.data.layouts import parse_columns as parse_columns
from adapterhub_cl.data.learned_layouts import layout_of
from adapterhub_cl.data.preferences import preferred, refuse_other_values, refuse_uneven, with_preferences
from adapterhub_cl.data.reading import SourceRows, read_rows
from adapterhub_cl.data.remarks import Heard, short_places
from adapterhub_cl.data.turns import answers_of, messages_of, past_last_answer
from adapterhub_cl.data.values import (
    answer_texts,
    as_data,
    as_label,
    choices_text,
    input_text,
    is_structured,
    read_json,
    too_deep,
)
from adapterhub_cl.errors import DataError
from adapterhub_cl.types import Example, Layout

LABEL_WORDS = 12  # longer answers are not labels


@dataclass(frozen=True)
class Examples:
    """The examples of a source.

    Attributes:
        examples: in the source's order.
        layout: the name of the layout that was recognised, e.g. `text/label`.
        source: the source as the user named it.
        sha256: see `Rows.sha256`.
        skipped: number of empty rows.
        remarks: what the user should know of how the rows were read: one line each.
        places: for each example its place in the source, e.g. `train.jsonl line 7`.
        read: the columns that were read.
        unused: columns that are not empty and were not read.
    """

    examples: list[Example]
    layout: str
    source: str
    sha256: str
    skipped: int
    places: list[str]
    read: Layout = field(default_factory=lambda: Layout(""))
    unused: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def examples(
    rows: SourceRows, columns: Columns | None = None, instruction: str = "", layout: Layout | None = None
) -> Examples:
    """The examples of rows to train or evaluate on; empty rows are skipped and counted.

    Args:
        rows: the result of `read_rows`.
        columns: role (`input`, `output`, `instruction`, …) → column or columns; otherwise the layout is recognised.
        instruction: for examples that have none of their own.
        layout: the layout that the task was trained on; used if the rows have its columns and `columns` is not given.

    Raises:
        DataError: no known layout; or rows with an input and no answer, or the reverse (names the first line); or a
            column that is part of the question would not be read.
        UsageError: the requested columns cannot be used.
    """
    return _build(rows, columns, instruction, [layout] if layout else [], answers=True)


def inputs(
    rows: SourceRows, columns: Columns | None = None, instruction: str = "", layouts: Sequence[Layout] = ()
) -> list[Example]:
    """The examples of rows to predict for; answers are read if there are any, and are not required.

    Args:
        layouts: of the tasks that may be asked; the first one whose columns exist is used.

    Raises:
        DataError: no known layout, or a row without an input; names the first line.
    """
    return _build(rows, columns, instruction, layouts, answers=False).examples


def read_examples(
    source: str | Path,
    columns: Columns | None = None,
    instruction: str = "",
    split: str = "train",
    layout: Layout | None = None,
) -> Examples:
    """Read a source (see `read_rows`) into examples (see `examples`)."""
    return examples(read_rows(source, split), columns, instruction, layout)


def read_inputs(
    source: str | Path, columns: Columns | None = None, instruction: str = "", layouts: Sequence[Layout] = ()
) -> list[Example]:
    """Read a source of inputs to predict for; a `.txt` file has one text a line."""
    return inputs(read_rows(source, text_lines=True), columns, instruction, layouts)


def _layout(
    rows: SourceRows, found: Sequence[str], columns: Columns | None, known: Sequence[Layout], answers: bool
) -> Layout:
    if columns:
        chosen = override(found, columns, answers=answers)
        if answers and chosen.desirable:
            refuse_other_values(rows, chosen.desirable, chosen)
        return chosen
    refuse_preferences(rows, found)
    layout = layout_of(rows, found, known, answers=answers)
    if layout is None:
        raise unrecognised(rows, found, answers)
    first = next((row for row in rows.rows if layout.input and row.get(layout.input[0])), {})
    if layout.name == "prompt/completion" and isinstance(first.get(layout.input[0]), list):
        # TRL's conversational form: both columns hold messages
        layout = Layout(
            "messages",
            chat=layout.input[0],
            completion=layout.output,
            system=layout.system,
            tools=layout.tools,
            rejected=layout.rejected,
        )
    return with_preferences(rows, found, layout) if answers else replace(layout, rejected=None, desirable=None)


def _build(
    rows: SourceRows, columns: Columns | None, instruction: str, known: Sequence[Layout], *, answers: bool
) -> Examples:
    found = list(dict.fromkeys(column for row in rows.rows for column in row))
    layout = _layout(rows, found, columns, known, answers)
    left = unused(rows, found, layout, chosen=bool(columns) or layout.name == AS_GIVEN)
    if layout.fields and layout.output:
        joined = [
            row | {layout.output: one_object(row, layout, rows, rows.where(k))} for k, row in enumerate(rows.rows)
        ]
        rows = replace(rows, rows=joined)
    structured = bool(layout.fields) or (
        layout.output is not None and is_structured([r.get(layout.output) for r in rows.rows], layout.output)
    )
    made: list[Example] = []
    places: list[str] = []
    empty: list[str] = []
    heard = Heard(layout)
    no_answer: list[str] = []
    no_input: list[str] = []
    for index, row in enumerate(rows.rows):
        where = rows.where(index)
        example = _example(row, layout, rows, where, answers, structured)
        if answers and layout.prefers and example.answer:
            refuse_uneven(row, layout, where)
            worse = replace(layout, output=layout.rejected, references=None)
            said = _answers(row, worse, rows, where, structured) if layout.rejected and layout.chat is None else []
            classes = rows.class_names.get(layout.desirable or "", ())
            example = preferred(example, row, layout, where, said[0] if said else "", classes)
            if example.rejected == example.answer:
                heard.alike.append(where)
                continue
        if not (example.input or example.answer or example.instruction):
            empty.append(where)
            full = [c for c, value in row.items() if c.strip().lower() not in NOTES and str(value or "").strip()]
            if answers and full:
                raise DataError(
                    f"{where}: the columns of the other rows ({layout.name}) are empty, but there is content in "
                    f"{', '.join(map(repr, full))}",
                    "give every row the same columns",
                )
            if answers:
                continue
        if answers and not example.answer:
            no_answer.append(where)
        if not example.input:
            no_input.append(where)
        heard.row(row, where)
        bare = not example.instruction and not example.turns
        made.append(replace(example, instruction=instruction) if bare else example)
        places.append(where)
    # `replay.jsonl` of a raw-text task is read as instruction/input/output with nothing but outputs
    raw_text = layout.name in ("raw text", "instruction/input/output") and answers and len(no_input) == len(made)
    if layout.output and no_answer and len(no_answer) == len(made) and not any(filled(rows, layout.output)):
        hint = proposal(rows, found, answers=True)
        raise DataError(
            f"{rows.source}: column {layout.output!r} is empty in every row",
            f"choose another: {hint}" if hint else "give every row its answer",
        )
    _complain(no_answer, "no answer", f"column {layout.output!r}" if layout.output else "no assistant turn to learn")
    if not raw_text:
        _complain(no_input, "no input", f"column {', '.join(layout.input)!r}" if layout.input else "nothing to answer")
    if not made:
        why = "chosen and rejected are the same in every pair" if heard.alike else f"all {len(empty)} rows are empty"
        raise DataError(f"{rows.source}: {why}", "give a file with at least one complete row")
    if raw_text:
        made = [Example("", example.answer) for example in made]
    name = "raw text" if raw_text else layout.name
    read = replace(layout, name=name)
    remarks = heard.remarks(empty) if answers else ()
    return Examples(made, name, rows.source, rows.sha256, len(empty), places, read, left, remarks)


def _example(
    row: Mapping[str, Any], layout: Layout, rows: SourceRows, where: str, answers: bool, structured: bool
) -> Example:
    def text(column: str | None) -> str:
        return input_text(row.get(column), where, column) if column else ""

    if layout.chat is not None:
        return _conversation(row, layout, where, text(layout.system), answers)
    parts = [text(column) for column in layout.input]
    if layout.choices:
        parts.append(choices_text(row.get(layout.choices), where, layout.choices))
    parts = [part for part in parts if part]
    asked = "\n".join(parts)
    task = "\n".join(part for part in (text(layout.system), text(layout.instruction)) if part)
    right = _answers(row, layout, rows, where, structured)
    answer, references = (right[0], tuple(right[1:])) if right else (None, ())
    turns = _history(row.get(layout.history), where, layout.history) if layout.history else []
    if turns or (layout.tools and row.get(layout.tools)):
        messages = [{"role": "system", "content": text(layout.system)}] if text(layout.system) else []
        question = "\n".join(part for part in (text(layout.instruction), asked) if part)
        messages += [*turns, {"role": "user", "content": question}]
        return replace(_made(messages, _tools(row, layout, where), where), answer=answer, references=references)
    # If the first of several parts is the longest, it is a passage, which is the part that may be cut.
    passage = len(parts[0]) if len(parts) > 1 and len(parts[0]) > sum(map(len, parts[1:])) else 0
    written = row.get("passage") if layout.name == "instruction/input/output" else None
    if isinstance(written, int) and not isinstance(written, bool) and 0 < written <= len(asked):
        passage = written  # as `Example.to_json` wrote it
    # an instruction without an input is used as the input, because that is what a router sees
    return Example(asked, answer, task, references, passage) if asked else Example(task, answer, "", references)


def one_object(row: Mapping[str, Any], layout: Layout, rows: SourceRows, where: str) -> dict[str, Any] | None:
    """The columns of an answer as one object; None if all of them are empty."""
    try:
        found = {name: as_data(row.get(name), rows.class_names.get(name, ())) for name in layout.fields}
    except RecursionError:
        raise too_deep(where) from None
    return found if any(value is not None for value in found.values()) else None


def _answers(row: Mapping[str, Any], layout: Layout, rows: SourceRows, where: str, structured: bool) -> list[str]:
    if layout.output is None:
        return []
    names: Sequence[str] = rows.class_names.get(layout.output, ())
    value = row.get(layout.output)
    options = row.get(layout.choices) if layout.choices else None
    if isinstance(value, int) and not isinstance(value, bool) and not names and isinstance(options, list | tuple):
        names = [chr(ord("A") + k) if k < 26 else str(k + 1) for k in range(len(options))]
    right = answer_texts(value, where, layout.output, names, structured=structured)
    if right:
        right += [text for text in _references(row, layout, where) if text not in right]
    if layout.name in LABELLED:
        return [as_label(text) for text in right]
    return [as_label(t) if "\n" not in t and len(t.split()) <= LABEL_WORDS and t == t.lstrip() else t for t in right]


def _conversation(row: Mapping[str, Any], layout: Layout, where: str, system: str, answers: bool) -> Example:
    assert layout.chat is not None
    messages = messages_of(row.get(layout.chat), where, layout.chat, learned=answers)
    said = (
        answers_of(row.get(layout.completion), where, layout.completion, learned=answers) if layout.completion else []
    )
    messages += said
    if system and messages and messages[0]["role"] == "system":
        own = messages[0]["content"]
        messages[0] |= {"content": own if own == system else f"{system}\n{own}".rstrip()}
    elif system:
        messages.insert(0, {"role": "system", "content": system})
    learned = past_last_answer(messages) if said or not layout.completion else 0
    if answers and learned:
        messages = messages[:learned]  # what follows the last answer cannot be learned
    found = _made(messages, _tools(row, layout, where), where)
    if answers and not learned:
        found = replace(found, answer=None, calls="")
    right = _references(row, layout, where)
    return replace(found, references=tuple(text for text in right if text != found.answer)) if right else found


def _references(row: Mapping[str, Any], layout: Layout, where: str) -> list[str]:
    """The further right answers of a row.

    Raises:
        DataError: they are neither a text nor a list.
    """
    value = row.get(layout.references) if layout.references else None
    if value is None or layout.references == layout.output:
        return []
    if not isinstance(value, str | list | tuple) and value == value:  # NaN is an empty cell
        raise DataError(
            f"{where}: column {layout.references!r} is {type(value).__name__}, not a list of right answers",
            'write ["one answer", "another"]',
        )
    return answer_texts(value, where, str(layout.references))


def _made(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], where: str) -> Example:
    try:
        found = Example.conversation(messages, tools)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a conversation ({error})", 'write [{"role": …, "content": …}, …]') from error
    return replace(found, answer=found.answer or None)


def _tools(row: Mapping[str, Any], layout: Layout, where: str) -> list[Any]:
    value = row.get(layout.tools) if layout.tools else None
    if isinstance(value, str) and value.strip():
        try:
            value = read_json(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: column {layout.tools!r} is not JSON ({error})", "write a list of tools"
            ) from error
    if not value:
        return []
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: column {layout.tools!r} is not a list of tools", "write a list of tools")
    # LLaMA-Factory's files have the functions alone, templates read OpenAI's form
    return [{"type": "function", "function": t} if isinstance(t, Mapping) and _is_bare(t) else t for t in value]


def _is_bare(tool: Mapping[str, Any]) -> bool:
    return isinstance(tool.get("name"), str) and "function" not in tool and "type" not in tool


def _history(value: Any, where: str, column: str) -> list[dict[str, Any]]:
    """Earlier turns: messages, or LLaMA-Factory's question-answer pairs."""
    if not value:
        return []
    if isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        roles = ("user", "assistant")
        return [
            {"role": r, "content": input_text(t, where, column)}
            for pair in value
            for r, t in zip(roles, pair, strict=True)
        ]
    return messages_of(value, where, column)


def _complain(places: Sequence[str], what: str, detail: str) -> None:
    if places:
        count = "" if len(places) == 1 else f"; {len(places)} such rows: {short_places(places)}"
        raise DataError(f"{places[0]}: {what} ({detail}{count})", "complete or remove these rows")
