"""Rows → examples: recognises the usual column layouts, or follows `--columns input=…,output=…`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub_cl.data.reading import Rows, read_rows
from adapterhub_cl.data.values import answer_text, input_text, turns
from adapterhub_cl.errors import DataError, UnknownNameError, UsageError
from adapterhub_cl.types import Example

ROLES = ("input", "output", "instruction")
CHAT = ("messages", "conversations")
ANSWERS = ("output", "response", "answer", "answers", "completion")
TEXTS = ("text", "sentence", "review", "content", "input")
LABELS = ("label_text", "label_name", "label", "labels", "category", "class", "intent", "sentiment")
CONTEXTS = ("context", "passage")
# columns that may stand beside a raw text without being an answer to it
NOTES = {"id", "idx", "index", "url", "title", "source", "meta", "metadata", "timestamp", "date", "split", "language"}


@dataclass(frozen=True)
class Layout:
    """Which columns make an example. `input` columns are joined by newlines in their order."""

    name: str
    input: tuple[str, ...] = ()
    output: str | None = None
    instruction: str | None = None
    chat: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c for c in (*self.input, self.output, self.instruction, self.chat) if c is not None)


@dataclass(frozen=True)
class Examples:
    """The examples of a source.

    Attributes:
        examples: in the source's order.
        layout: the name of the layout that was recognised, e.g. `text/label`.
        source: the source as the user named it.
        sha256: see `Rows.sha256`.
        skipped: number of rows that had nothing in them.
        places: for each example its place in the source, e.g. `train.jsonl line 7`.
    """

    examples: list[Example]
    layout: str
    source: str
    sha256: str
    skipped: int
    places: list[str]

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def parse_columns(text: str) -> dict[str, str]:
    """`input=review,output=stars` → `{"input": "review", "output": "stars"}`.

    Raises:
        UsageError: not of that form, or a role that does not exist.
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not pairs or any(not sign or not column.strip() for _, sign, column in pairs):
        raise UsageError(
            f"--columns {text!r}: not of the form role=column", "write --columns input=COLUMN,output=COLUMN"
        )
    found = {role.strip(): column.strip() for role, _, column in pairs}
    for role in found:
        if role not in ROLES:
            raise UnknownNameError("role in --columns", role, ROLES)
    return found


def recognise(columns: Sequence[str], *, answers: bool = True) -> Layout | None:
    """The layout of a set of columns, or None. Case and spaces around names are ignored.

    Args:
        columns: the names as they stand in the source.
        answers: whether an answer column is required (training) or not (prediction).
    """
    own = {column.strip().lower(): column for column in reversed(columns)}

    def first(names: Sequence[str]) -> str | None:
        return next((own[name] for name in names if name in own), None)

    chat, answer, label = first(CHAT), first(ANSWERS), first(LABELS)
    context = first(CONTEXTS)
    if chat:
        return Layout("messages", chat=chat)
    if "instruction" in own and (answer or not answers):
        text = first(("input", *CONTEXTS))
        return Layout("instruction/input/output", (text,) if text else (), answer, own["instruction"])
    if "prompt" in own and (answer or not answers):
        return Layout("prompt/completion", (own["prompt"],), answer)
    if "question" in own and (answer or not answers):
        return Layout("question/answer", (context, own["question"]) if context else (own["question"],), answer)
    text = first(TEXTS)
    if text and label:
        return Layout("text/label", (text,), label, own.get("instruction"))
    if "input" in own and (answer or not answers):
        return Layout("input/output", (own["input"],), answer)
    if text and not answers:
        return Layout("text", (text,))
    if text and set(own) - NOTES == {text.strip().lower()} and text.strip().lower() != "input":
        return Layout("raw text", (), text)
    return None


def override(columns: Sequence[str], wanted: Mapping[str, str], *, answers: bool = True) -> Layout:
    """The layout that `--columns` asks for; `output` alone makes raw text.

    Raises:
        UnknownNameError: a role or a column that is not there.
        UsageError: no column for the answers.
    """
    for role, column in wanted.items():
        if role not in ROLES:
            raise UnknownNameError("role in --columns", role, ROLES)
        if column not in columns:
            raise UnknownNameError("column", column, columns)
    if answers and "output" not in wanted:
        raise UsageError("--columns names no output", "add output=COLUMN, the column with the answers")
    if not answers and not {"input", "instruction"} & set(wanted):
        raise UsageError("--columns names no input", "add input=COLUMN, the column with the texts")
    text, instruction = wanted.get("input"), wanted.get("instruction")
    name = "raw text" if not text and not instruction else "as given by --columns"
    return Layout(name, (text,) if text else (), wanted.get("output"), instruction)


def examples(rows: Rows, columns: Mapping[str, str] | None = None, instruction: str = "") -> Examples:
    """The examples of rows to train or score on; rows with nothing in them are skipped and counted.

    Args:
        rows: what `read_rows` gave.
        columns: role (`input`, `output`, `instruction`) → column; without it the layout is recognised.
        instruction: for examples that have none of their own.

    Raises:
        DataError: no known layout; or rows with an input and no answer, or the reverse; names the first line.
        UsageError: the columns asked for cannot be used.
    """
    return _build(rows, columns, instruction, answers=True)


def inputs(rows: Rows, columns: Mapping[str, str] | None = None, instruction: str = "") -> list[Example]:
    """The examples of rows to predict for; answers are taken where they are there, and are not required.

    Raises:
        DataError: no known layout, or a row without an input; names the first line.
    """
    return _build(rows, columns, instruction, answers=False).examples


def read_examples(
    source: str | Path, columns: Mapping[str, str] | None = None, instruction: str = "", split: str = "train"
) -> Examples:
    """Read a source (see `read_rows`) into examples (see `examples`)."""
    return examples(read_rows(source, split), columns, instruction)


def read_inputs(source: str | Path, columns: Mapping[str, str] | None = None, instruction: str = "") -> list[Example]:
    """Read a source of inputs to predict for; a `.txt` file is one text a line."""
    return inputs(read_rows(source, text_lines=True), columns, instruction)


def _build(rows: Rows, columns: Mapping[str, str] | None, instruction: str, *, answers: bool) -> Examples:
    found = list(dict.fromkeys(column for row in rows.rows for column in row))
    layout = override(found, columns, answers=answers) if columns else recognise(found, answers=answers)
    if layout is None:
        raise _unrecognised(rows, found, answers)
    made: list[Example] = []
    places: list[str] = []
    skipped = 0
    no_answer: list[str] = []
    no_input: list[str] = []
    for index, row in enumerate(rows.rows):
        where = rows.where(index)
        example = _example(row, layout, rows, where, answers)
        if not (example.input or example.answer or example.instruction):
            skipped += 1
            full = [c for c, value in row.items() if c.strip().lower() not in NOTES and str(value or "").strip()]
            if answers and full:
                raise DataError(
                    f"{where}: nothing in the columns of the other rows ({layout.name}), but something in "
                    f"{', '.join(map(repr, full))}",
                    "give every row the same columns",
                )
            if answers:
                continue
        if answers and not example.answer:
            no_answer.append(where)
        if not example.input:
            no_input.append(where)
        made.append(example if example.instruction else Example(example.input, example.answer, instruction))
        places.append(where)
    # `replay.jsonl` of a raw-text task comes back as instruction/input/output with nothing but outputs
    raw_text = layout.name in ("raw text", "instruction/input/output") and answers and len(no_input) == len(made)
    if layout.output and no_answer and len(no_answer) == len(made) and not any(_filled(rows, layout.output)):
        hint = _proposal(rows, found, answers=True)
        raise DataError(
            f"{rows.source}: column {layout.output!r} is empty in every row",
            f"choose another: {hint}" if hint else "give every row its answer",
        )
    _complain(no_answer, "no answer", f"column {layout.output!r}" if layout.output else "no assistant turn")
    if not raw_text:
        _complain(no_input, "no input", f"column {', '.join(layout.input)!r}" if layout.input else "nothing to answer")
    if not made:
        raise DataError(f"{rows.source}: all {skipped} rows are empty", "give a file with at least one full row")
    if raw_text:
        made = [Example("", example.answer) for example in made]
    return Examples(made, "raw text" if raw_text else layout.name, rows.source, rows.sha256, skipped, places)


def _example(row: Mapping[str, Any], layout: Layout, rows: Rows, where: str, answers: bool) -> Example:
    if layout.chat is not None:
        chat = turns(row.get(layout.chat), where, layout.chat, answered=answers)
        return Example(chat.input, chat.answer, chat.instruction)
    parts = [input_text(row.get(column), where, column) for column in layout.input]
    text = "\n".join(part for part in parts if part)
    task = input_text(row.get(layout.instruction), where, layout.instruction) if layout.instruction else ""
    answer = None
    if layout.output is not None:
        names = rows.class_names.get(layout.output, ())
        answer = answer_text(row.get(layout.output), where, layout.output, names) or None
    # a bare instruction is the input: it is what a router sees
    return Example(text, answer, task) if text else Example(task, answer)


def _complain(places: Sequence[str], what: str, detail: str) -> None:
    if places:
        count = "" if len(places) == 1 else f"; {len(places)} such rows"
        raise DataError(f"{places[0]}: {what} ({detail}{count})", "complete or remove these rows")


def _unrecognised(rows: Rows, found: Sequence[str], answers: bool) -> DataError:
    hint = _proposal(rows, found, answers=answers) or f"--columns input=COLUMN{',output=COLUMN' if answers else ''}"
    listed = ", ".join(found) or "none"
    return DataError(f"{rows.source}: no known layout in its columns ({listed})", f"say which is which: {hint}")


def _proposal(rows: Rows, found: Sequence[str], *, answers: bool) -> str:
    """A guess at `--columns`, quoted for a shell; empty where no column could be the input, or none the answer.

    The longest texts are the input; of the others the answer is the column that says most often the same.
    """
    filled = {column: _filled(rows, column) for column in found if not {",", "="} & set(column)}
    usable = [column for column, values in filled.items() if any(values)]
    text = max(usable, key=lambda column: sum(map(len, filled[column])), default=None)
    rest = [column for column in usable if column != text and column.strip().lower() not in NOTES]
    if text is None or (answers and not rest):
        return ""

    def preferred(column: str) -> tuple[bool, bool, int]:
        distinct = len(set(filled[column]))
        return not all(filled[column]), distinct == 1 and len(rows.rows) > 1, distinct

    wanted = f"input={text}" + (f",output={min(rest, key=preferred)}" if answers else "")
    return f"--columns {shlex.quote(wanted)}"


def _filled(rows: Rows, column: str) -> list[str]:
    """What stands in a column, row by row; empty texts where nothing does."""
    values = (row.get(column) for row in rows.rows)
    return ["" if value is None or value != value else str(value).strip() for value in values]  # NaN is nothing
