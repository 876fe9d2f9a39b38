"""One cell → text: labels that are numbers, answers that are lists, chat turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from adapterhub_cl.errors import DataError

USER, ASSISTANT = {"user", "human", "prompter"}, {"assistant", "gpt", "bot", "model", "chatgpt"}


class ChatTurns(NamedTuple):
    """A conversation taken apart: system turn, what led to the last assistant turn, and that turn."""

    instruction: str
    input: str
    answer: str | None


def whole_characters(text: str) -> str:
    """The text with lone halves of characters (from cut JSON, or a shell) replaced: no tokenizer takes them."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if not text.isascii() else text


def input_text(value: Any, where: str, column: str) -> str:
    """The text of an input cell, stripped; empty for null. Numbers are written out.

    Raises:
        DataError: the cell holds a list or an object.
    """
    if isinstance(value, Mapping | list | tuple):
        raise DataError(
            f"{where}: column {column!r} holds {'an object' if isinstance(value, Mapping) else 'a list'}, not a text",
            "choose other columns: --columns input=COLUMN,output=COLUMN",
        )
    return _scalar(value)


def answer_text(value: Any, where: str, column: str, class_names: Sequence[str] = ()) -> str:
    """The text of an answer cell, stripped; empty for null, NaN and class −1.

    Whole numbers become their decimal text, or the class name where there are names; truth values become `true`
    and `false`. Of several answers to one question (a list, or SQuAD's `{"text": [...]}`) the first is taken.

    Raises:
        DataError: several labels for one row, an object without `text`, or a class number without a name.
    """
    if isinstance(value, Mapping):
        if "text" not in value:
            raise DataError(f"{where}: column {column!r} holds an object without 'text'", "give the answer as a text")
        value = value["text"]
    if isinstance(value, list | tuple):
        if len(value) > 1 and "label" in column.lower():
            raise DataError(
                f"{where}: {len(value)} labels in column {column!r}; a choice has one", "write one label for each row"
            )
        value = value[0] if value else None
    if class_names and isinstance(value, int) and not isinstance(value, bool):
        if value == -1:
            return ""
        if not 0 <= value < len(class_names):
            raise DataError(
                f"{where}: class {value} in column {column!r}, which has {len(class_names)} classes",
                "mend the row or the class names",
            )
        return class_names[value]
    if isinstance(value, Mapping | list | tuple):
        raise DataError(f"{where}: column {column!r} is nested too deep for an answer", "give the answer as a text")
    return _scalar(value)


def turns(value: Any, where: str, column: str, *, answered: bool = True) -> ChatTurns:
    """Take a conversation apart: OpenAI's `role`/`content` or ShareGPT's `from`/`value`.

    The last assistant turn is the answer and a leading system turn the instruction. The turns before the answer
    are the input: a single user turn is just its content, several are joined as `role: content` lines.

    Args:
        value: the cell.
        where: the row's place, for messages.
        column: the cell's column, for messages.
        answered: drop turns after the last assistant turn (training). If not, a conversation that ends with another
            turn is all input (prediction).

    Raises:
        DataError: it is not a list of such turns.
    """
    if value is None:
        return ChatTurns("", "", None)
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: column {column!r} is not a list of turns", 'write [{"role": …, "content": …}, …]')
    spoken = [_turn(turn, where, column) for turn in value]
    instruction = ""
    if spoken and spoken[0][0] == "system":
        instruction, spoken = spoken[0][1], spoken[1:]
    last = max((i for i, (role, _) in enumerate(spoken) if role == "assistant"), default=None)
    if not answered and last != len(spoken) - 1:
        last = None
    answer = None if last is None else spoken[last][1]
    before = spoken[:last]
    if len(before) == 1 and before[0][0] == "user":
        return ChatTurns(instruction, before[0][1], answer)
    return ChatTurns(instruction, "\n".join(f"{role}: {content}" for role, content in before), answer)


def _turn(turn: Any, where: str, column: str) -> tuple[str, str]:
    role = content = None
    if isinstance(turn, Mapping):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list | tuple):  # parts: texts among images
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = "\n".join(text for text in texts if isinstance(text, str))
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{where}: a turn in column {column!r} has no role and content", 'write [{"role": …, "content": …}, …]'
        )
    role = role.strip().lower()
    return "user" if role in USER else "assistant" if role in ASSISTANT else role, content.strip()


def _scalar(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace").strip()
    return whole_characters(str(value)).strip()
