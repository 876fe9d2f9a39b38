"""Column names → layout: recognises common ones, or follows `--columns input=…,output=…`; rejects what would be
misread."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.errors import DataError, UnknownNameError, UsageError
from adapterhub_cl.types import Layout

ROLES = ("input", "output", "instruction", "system", "choices", "rejected", "desirable")
OTHER_ROLES = {"chosen": "output"}  # TRL's word for the better of two answers
JOINED = ("input", "output")  # roles that several columns may have together
CHAT = ("messages", "conversations", "conversation")
ANSWERS = ("output", "response", "answer", "answers", "completion", "answerkey", "answer_key")
TEXTS = ("text", "sentence", "review", "content", "input")
LABELS = ("label_text", "label_name", "label", "labels", "category", "class", "intent", "sentiment")
CONTEXTS = ("context", "passage")
CHOICES = ("choices", "options")
SYSTEMS = ("system_prompt", "system")
# further names of labels and of answers, where one other column is the input
MORE_LABELS = ("topic", "department", "team", "queue", "tag", "emotion", "genre", "priority")
MORE_ANSWERS = ("json", "reply", "summary", "target", "translation")
# texts that belong to one question
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
)
# columns that may occur beside raw text without being an answer to it
NOTES = {"id", "idx", "index", "url", "title", "source", "meta", "metadata", "timestamp", "date", "split", "language"}
# columns that are part of the question wherever they occur
ASKING = {
    *(name for pair in PAIRS for name in pair),
    *("question", "query", "prompt", "instruction", "input", "history", "tools"),
    *CONTEXTS,
    *CHOICES,
    *SYSTEMS,
}
# columns whose pictures and sounds belong to the question, and are not read
MEDIA = {"image", "images", "video", "videos", "audio", "audios"}
PAIR = ("chosen", "rejected")  # TRL's and LLaMA-Factory's names
# words that a better and a worse answer go by; `--columns` has to say so
BETTER_WORSE = (
    PAIR,
    ("good", "bad"),
    ("better", "worse"),
    ("right", "wrong"),
    ("correct", "incorrect"),
    ("accepted", "rejected"),
    ("preferred", "dispreferred"),
    ("winner", "loser"),
    ("up", "down"),
)
OTHER_PAIRS = (("preferred", "dispreferred"), ("response_a", "response_b"))
# columns that judge the answer beside them: LLaMA-Factory's name, TRL's, and those of files of feedback
JUDGEMENTS = ("kto_tag", "label", "thumb", "thumbs", "rating")
PREFERENCE_HINT = "name the better answer 'chosen' and the worse one 'rejected', with the question in 'prompt'"

MANY = 3  # with more columns than a question, its context and an answer, several may be the answer
AS_GIVEN = "as given by --columns"  # the name of the layout that the user chose

Columns = Mapping[str, str | Sequence[str]]


def parse_columns(text: str) -> dict[str, str | list[str]]:
    """`input=review,output=stars` → `{"input": "review", "output": "stars"}`; several `input=` or `output=` make a
    list.

    Raises:
        UsageError: the text does not have that form, or it gives a role twice that may be given only once.
        UnknownNameError: the role does not exist.
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not pairs or any(not sign or not column.strip() for _, sign, column in pairs):
        raise UsageError(
            f"--columns {text!r} is not of the form role=column", "write --columns input=COLUMN,output=COLUMN"
        )
    found: dict[str, list[str]] = {}
    for role, _, column in pairs:
        found.setdefault(OTHER_ROLES.get(role.strip(), role.strip()), []).append(column.strip())
    better = any(role.strip() in OTHER_ROLES for role, _, _ in pairs)
    for role, columns in found.items():
        if role not in ROLES:
            raise UnknownNameError("role in --columns", role, ROLES)
        if len(columns) > 1 and (role not in JOINED or (role == "output" and better)):
            raise UsageError(
                f"--columns names two columns as {role}", "only input and output may be given more than once"
            )
    return {role: columns[0] if len(columns) == 1 else columns for role, columns in found.items()}


def read_columns(value: str | Columns) -> dict[str, str | list[str]]:
    """Columns as `--columns` writes them, or as a mapping of YAML or Python.

    Raises:
        UsageError, UnknownNameError: see `parse_columns`.
    """
    if isinstance(value, str):
        return parse_columns(value)
    if not isinstance(value, Mapping) or not all(isinstance(c, str | list | tuple) for c in value.values()):
        raise UsageError(f"columns cannot be {value!r}", "write --columns input=COLUMN,output=COLUMN")
    given = {str(OTHER_ROLES.get(role, role)): found for role, found in value.items()}
    if len(given) < len(value):
        raise UsageError("--columns names two columns as output", "chosen is another word for output: give one of them")
    for role in given:
        if role not in ROLES:
            raise UnknownNameError("role in --columns", role, ROLES)
    return {role: found if isinstance(found, str) else [str(c) for c in found] for role, found in given.items()}


def named(columns: Columns) -> set[str]:
    return {c for value in columns.values() for c in ([value] if isinstance(value, str) else value)}


def recognise(columns: Sequence[str], *, answers: bool = True) -> Layout | None:
    """The layout of a set of columns, or None. Case and spaces around names are ignored.

    The input columns are the same with and without answers.

    Args:
        columns: the names as they are in the source.
        answers: whether an answer column is required (training) or not (prediction).
    """
    own = {column.strip().lower(): column for column in reversed(columns)}
    rejected = None
    if set(PAIR) <= set(own):
        chosen, rejected = own.pop("chosen"), own.pop("rejected")
        own = {name: column for name, column in own.items() if name not in ANSWERS} | {"completion": chosen}
        if not any(name in own for name in (*CHAT, *ASKING)):  # TRL's form without a prompt: two whole conversations
            return Layout("messages", chat=chosen, rejected=rejected, tools=own.get("tools"))
    found = _recognise(own, lambda there: bool(there))
    if found is not None and rejected is not None:
        if found.chat:
            found = replace(found, completion=own["completion"])
        return replace(found, rejected=rejected)
    if answers and found is None:
        return _of_two(own)
    if not answers and (found is None or found.name == "raw text"):
        text = next((own[name] for name in TEXTS if name in own), None)
        found = _recognise(own, lambda there: True)
        if found is None or found.name == "raw text":
            found = Layout("text", (text,)) if text else None
    return found


def _recognise(own: Mapping[str, str], enough: Any) -> Layout | None:
    def first(names: Sequence[str]) -> str | None:
        return next((own[name] for name in names if name in own), None)

    chat, answer, label = first(CHAT), first(ANSWERS), first(LABELS)
    context, choices, system = first(CONTEXTS), first(CHOICES), first(SYSTEMS)
    history, tools, references = own.get("history"), own.get("tools") or own.get("functions"), own.get("references")
    answer = answer or references  # a list of right answers: the first one is learned
    if chat:
        return Layout("messages", chat=chat, system=system, tools=tools, references=references)
    more: dict[str, Any] = {
        "system": system,
        "choices": choices,
        "history": history,
        "tools": tools,
        "references": references,
    }
    if "instruction" in own and enough(answer):
        text = first(("input", *CONTEXTS))
        parts: tuple[str, ...] = (text,) if text else ()
        return Layout("instruction/input/output", parts, answer, own["instruction"], **more)
    if "prompt" in own and enough(answer):
        if "input" in own:
            return Layout("prompt/input/completion", (own["input"],), answer, own["prompt"], **more)
        return Layout("prompt/completion", (own["prompt"],), answer, **more)
    if "query" in own and enough(answer):
        return Layout("prompt/completion", (own["query"],), answer, **more)
    if "user" in own and "assistant" in own:
        return Layout("prompt/completion", (own["user"],), own["assistant"], **more)
    for one, other in PAIRS:
        if one in own and other in own and enough(label or answer):
            name = "text pair/label"
            return Layout(name, (own[one], own[other]), label or answer, own.get("instruction"), **more)
    if "question" in own and enough(answer or (label if choices else None)):
        parts = (context, own["question"]) if context else (own["question"],)
        return Layout("question/answer", parts, answer or (label if choices else None), **more)
    text = first(TEXTS)
    if text and label:
        return Layout("text/label", (text,), label, own.get("instruction"), **more)
    if "input" in own and enough(answer):
        return Layout("input/output", (own["input"],), answer, **more)
    if text and set(own) - NOTES == {text.strip().lower()} and text.strip().lower() != "input":
        return Layout("raw text", (), text)
    return None


def _of_two(own: Mapping[str, str]) -> Layout | None:
    """The layout of two columns of which one has an answer's name: the other one is the input, whatever its name."""
    names = [name for name in own if name not in NOTES]
    answers = {*LABELS, *ANSWERS, *MORE_LABELS, *MORE_ANSWERS, *JUDGEMENTS}
    others = answers | MEDIA | {*CHOICES, *SYSTEMS, *sum(PAIRS, ())} - {"question"}
    for text, name in (names, names[::-1]) if len(names) == 2 else ():
        if text in others:
            continue
        if name in (*LABELS, *MORE_LABELS):
            return Layout("text/label", (own[text],), own[name])
        if name in (*ANSWERS, *MORE_ANSWERS):
            return Layout("input/output", (own[text],), own[name])
    return None


def override(columns: Sequence[str], wanted: Columns, *, answers: bool = True) -> Layout:
    """The layout that `--columns` describes; `output` alone makes raw text.

    Raises:
        UnknownNameError: the role or column does not exist.
        UsageError: there is no column for the answers.
    """
    wanted = read_columns(wanted)
    for column in sorted(named(wanted)):
        if column not in columns:
            raise UnknownNameError("column", column, columns)
    if answers and "output" not in wanted:
        raise UsageError("--columns names no output", "add output=COLUMN, the column with the answers")
    if not answers and not {"input", "instruction"} & set(wanted):
        raise UsageError("--columns names no input", "add input=COLUMN, the column with the texts")
    one = {role: str(value) for role, value in wanted.items() if role not in JOINED}
    text, answer = (
        (given,) if isinstance(given := wanted.get(role, ()), str) else tuple(dict.fromkeys(given)) for role in JOINED
    )
    if len(answer) < 2:
        name = "raw text" if not text and "instruction" not in one else AS_GIVEN
        return Layout(name, text, answer[0] if answer else None, one.get("instruction"), **_others(one))
    if {"rejected", "desirable"} & set(one):
        raise UsageError(
            "--columns names several outputs, and which answers are preferred", "preferences are of one column"
        )
    if not text and "instruction" not in one:
        raise UsageError("--columns names several outputs and no input", "add input=COLUMN, the column with the texts")
    return Layout(AS_GIVEN, text, ", ".join(answer), one.get("instruction"), **_others(one), fields=answer)


def _others(one: Mapping[str, str]) -> dict[str, Any]:
    return {role: one[role] for role in ("system", "choices", "rejected", "desirable") if role in one}


def refuse_preferences(rows: SourceRows, columns: Sequence[str]) -> None:
    """Raise for two answers to each question of which nothing says in which column the better one stands.

    Raises:
        DataError: names the columns.
    """
    own = {column.strip().lower() for column in columns}
    for pair in OTHER_PAIRS:
        if set(pair) <= own and not set(PAIR) <= own:
            hint = proposal(rows, columns, answers=True)
            raise DataError(
                f"{rows.source}: preference data under names that are not known ({pair[0]}, {pair[1]})",
                PREFERENCE_HINT + (f"; or {hint}" if pair in BETTER_WORSE and hint else ""),
            )


def _left(rows: SourceRows, columns: Sequence[str], layout: Layout) -> list[str]:
    left = [c for c in columns if c not in layout.columns and any(filled(rows, c))]
    if layout.name == "instruction/input/output":  # there `Example.to_json` writes how long the passage is
        left = [c for c in left if c != "passage" or not all(isinstance(row.get(c, 0), int) for row in rows.rows)]
    if layout.chat and layout.rejected:  # whole conversations, whose question may stand beside them once more
        left = [c for c in left if c.strip().lower() != "prompt"]
    return left


def unread(rows: SourceRows, columns: Sequence[str], layout: Layout) -> list[str]:
    """The columns that are part of a question by their names, are not empty, and are not read."""
    return _left(rows, _asking(columns), layout)


def _asking(columns: Sequence[str]) -> list[str]:
    return [column for column in columns if column.strip().lower() in ASKING]


def unused(rows: SourceRows, columns: Sequence[str], layout: Layout, *, chosen: bool) -> tuple[str, ...]:
    """The columns that are not empty and are not read.

    Args:
        chosen: whether the user named the columns, so that leaving one out is intended.

    Raises:
        DataError: one of them is part of the question, and the user did not choose to leave it out.
    """
    left = _left(rows, columns, layout)
    if not chosen and (media := [c for c in left if c.strip().lower() in MEDIA and _holds_media(rows, c)]):
        raise DataError(
            f"{rows.source}: column {media[0]!r} holds what is not text, and only texts are read",
            "if the texts suffice, remove the column" + ("" if layout.chat else ", or name the others with --columns"),
        )
    asking = _asking(left)
    if asking and not chosen:
        many = len(asking) > 1
        given = [f"input={c}" for c in (*layout.input, *asking)]
        given += [f"{role}={c}" for role in ("output", "instruction") if (c := getattr(layout, role))]
        hint = f"to read {'them' if many else 'it'}: --columns {shlex.quote(','.join(given))}"
        if layout.chat and (mixed := _without(rows, layout.columns, asking[0])):
            raise DataError(
                f"{mixed} has {asking[0]!r} and no {layout.columns[0]!r}, unlike other rows: a file has one layout",
                f"write that row as {layout.columns[0]!r} too, or teach the rows with {asking[0]!r} from another file",
            )
        if layout.chat:
            hint = "put it into the conversation as a message"
        raise DataError(
            f"{rows.source}: {', '.join(map(repr, asking))} would be ignored (layout: {layout.name})",
            f"{hint}; or remove the column{'s' if many else ''}",
        )
    return tuple(left)


def _without(rows: SourceRows, columns: Sequence[str], other: str) -> str:
    """The place of the first row that has another column and none of these; empty if there is none."""
    for index, row in enumerate(rows.rows):
        if row.get(other) and not any(row.get(column) for column in columns):
            return rows.where(index)
    return ""


def _holds_media(rows: SourceRows, column: str) -> bool:
    return any(isinstance(row.get(column), list | tuple | dict | str | bytes) and row[column] for row in rows.rows)


def unrecognised(rows: SourceRows, found: Sequence[str], answers: bool) -> DataError:
    """The error for columns that match no known layout."""
    hint = proposal(rows, found, answers=answers) or f"--columns input=COLUMN{',output=COLUMN' if answers else ''}"
    listed = ", ".join(found) or "none"
    several = answers and len([column for column in found if column.strip().lower() not in NOTES]) > MANY
    how = " (several output= are learned as one JSON object)" if several else ""
    return DataError(f"{rows.source}: the columns match no known layout ({listed})", f"name their roles{how}: {hint}")


def proposal(rows: SourceRows, found: Sequence[str], *, answers: bool) -> str:
    """A guess at `--columns`, quoted for a shell; empty if no column could be the input or the answer.

    The input is a column whose name suggests a question, otherwise the one with the longest texts; the answer is a
    column named like one, otherwise one of objects, otherwise the one with the fewest different values. Two columns
    named like a better and a worse answer are a pair.
    """
    texts = {column: filled(rows, column) for column in found if not {",", "="} & set(column)}
    usable = [column for column, values in texts.items() if any(values)]

    objects = {column for column in usable if all(map(_looks_like_object, filter(None, texts[column])))}
    named = {column for column in usable if column.strip().lower() in (*ANSWERS, *LABELS)}  # like an answer

    def likely(column: str) -> tuple[bool, bool, bool, int]:
        asks = column.strip().lower() in ASKING
        return column not in objects, asks, column not in named, sum(map(len, texts[column]))

    own = {column.strip().lower(): column for column in usable}
    pair = next(([own[one], own[two]] for one, two in BETTER_WORSE if answers and one in own and two in own), [])
    text = max((column for column in usable if column not in pair), key=likely, default=None)
    rest = [column for column in usable if column != text and column.strip().lower() not in NOTES]
    if text is None or (answers and not rest):
        return ""

    def preferred(column: str) -> tuple[bool, bool, bool, bool, int]:
        distinct = len(set(texts[column]))
        one = distinct == 1 and len(rows.rows) > 1
        return column not in named, column not in objects, not all(texts[column]), one, distinct

    if pair:
        return f"--columns {shlex.quote(f'input={text},output={pair[0]},rejected={pair[1]}')}"
    wanted = f"input={text}" + (f",output={min(rest, key=preferred)}" if answers else "")
    return f"--columns {shlex.quote(wanted)}"


def _looks_like_object(text: str) -> bool:
    """Whether a value is an object or a list, or JSON of one."""
    return (text[0], text[-1]) in (("{", "}"), ("[", "]"))


def filled(rows: SourceRows, column: str) -> list[str]:
    """The values of a column, row by row; an empty text if there is none."""
    values = (row.get(column) for row in rows.rows)
    return ["" if value is None or value != value else str(value).strip() for value in values]  # NaN counts as empty
