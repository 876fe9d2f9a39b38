"""One example, the turns of a conversation, and the columns that examples come from. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

SYSTEM = ("system", "developer")  # roles of messages that say how to answer
UNLEARNED: Mapping[str, Any] = {"weight": 0}  # beside an assistant's message that is read and not learned


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether a message is an answer of the assistant that is to be learned."""
    return bool(message["role"] == "assistant" and message.get("weight") != 0)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: `system`, `developer`, `user`, `assistant` or `tool`.
        content: the text; empty if the message only calls tools.
        more: the message's other keys (`tool_calls`, `name`, `tool_call_id`, …) as a JSON object, or empty.
    """

    role: str
    content: str
    more: str = ""

    @property
    def text(self) -> str:
        """What is said, and the tools that are called, one a line."""
        calls = self.message().get("tool_calls")
        return "\n".join(part for part in (self.content, calls_text(json.dumps(calls)) if calls else "") if part)

    def message(self) -> dict[str, Any]:
        """The turn as a message for chat templates."""
        return {"role": self.role, "content": self.content, **(json.loads(self.more) if self.more else {})}


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        input: the bare text, which routers see. For a conversation, the last user message.
        answer: the text to generate; None if only a prediction is wanted.
        instruction: what to do with the input; may be empty. For a conversation, its system message.
        references: right answers in addition to `answer`.
        passage: number of characters at the start of the input that are a passage, which is cut first if the example
            is too long.
        turns: the conversation before the answer, if it is more than one question.
        tools: the tools that the conversation may call, as a JSON list, or empty.
        calls: the answer's `tool_calls` as a JSON list, if the answer calls tools.
        rejected: of a preference pair the worse answer; `answer` is the chosen one. Empty for other examples.
        desirable: of an answer that was judged alone whether it was liked; None for other examples.
    """

    input: str
    answer: str | None = None
    instruction: str = ""
    references: tuple[str, ...] = ()
    passage: int = 0
    turns: tuple[Turn, ...] = ()
    tools: str = ""
    calls: str = ""
    rejected: str = ""
    desirable: bool | None = None

    @property
    def prefers(self) -> bool:
        """Whether it says which answers are wanted: a pair, or a single answer with a judgement."""
        return bool(self.rejected) or self.desirable is not None

    @property
    def asks(self) -> bool:
        return bool(self.input.strip() or self.instruction.strip())

    @property
    def is_raw(self) -> bool:
        """Whether it is raw text, which is stored as an answer."""
        return bool(self.answer and not self.input and not self.instruction)

    @property
    def is_whole(self) -> bool:
        return bool(self.input.strip() and self.instruction.strip())

    @property
    def said(self) -> str:
        """The answer without the tools that it calls."""
        return (self.answer or "").removesuffix(calls_text(self.calls)).rstrip() if self.calls else self.answer or ""

    @property
    def text(self) -> str:
        """The whole input as plain text: for a conversation its turns without the system message that it begins with,
        which is the instruction."""
        spoken = self.turns[1:] if self.turns and self.turns[0].role in SYSTEM else self.turns
        if len(spoken) < 2:
            return self.input
        return "\n".join(f"{turn.role}: {turn.text}" for turn in spoken)

    def with_input(self, text: str) -> Example:
        """The same question with another input; for a conversation with another last message."""
        turns = (*self.turns[:-1], replace(self.turns[-1], content=text)) if self.turns else ()
        return replace(self, input=text, turns=turns, passage=0)

    def question(self) -> Example:
        """The example without its answer; raw text becomes the input."""
        if self.input or self.turns:
            return replace(self, answer=None, references=(), calls="", rejected="", desirable=None)
        return Example(self.answer or "", None, self.instruction)

    def to_json(self) -> dict[str, Any]:
        """The row as it is written to `replay.jsonl`; `add-task` reads it as data."""
        row: dict[str, Any]
        if self.turns:
            row = {"messages": [turn.message() for turn in self.turns]}
            if self.answer is not None and not self.rejected:
                calls = {"tool_calls": json.loads(self.calls)} if self.calls else {}
                row["messages"].append({"role": "assistant", "content": self.said, **calls})
            if self.tools:
                row["tools"] = json.loads(self.tools)
        else:
            row = {"instruction": self.instruction, "input": self.input}
            if self.answer is not None and not self.rejected:
                row["output"] = self.answer
        if self.rejected:  # LLaMA-Factory's names
            row |= {"chosen": self.answer, "rejected": self.rejected}
        if self.desirable is not None:
            row["kto_tag"] = self.desirable
        if self.references:
            row["references"] = list(self.references)
        if self.passage:
            row["passage"] = self.passage
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Example:
        """The reverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the row was not written by `to_json`.
        """
        references, passage = tuple(row.get("references", ())), row.get("passage", 0)
        if not all(isinstance(text, str) for text in references) or not isinstance(passage, int):
            raise TypeError("not text")
        rejected, desirable = row.get("rejected", ""), row.get("kto_tag")
        if not isinstance(rejected, str) or not isinstance(desirable, bool | None):
            raise TypeError("not a preference")
        more: dict[str, Any] = {"references": references, "rejected": rejected, "desirable": desirable}
        if "messages" in row:
            found = cls.conversation(row["messages"], row.get("tools") or ())
            if rejected:
                more["answer"] = _text(row["chosen"])
            return replace(found, **more)
        answer = row.get("chosen" if rejected else "output")
        texts = (_text(row["input"]), None if answer is None else _text(answer), _text(row.get("instruction", "")))
        return cls(*texts, passage=passage, **more)

    @classmethod
    def conversation(cls, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> Example:
        """An example from a conversation; the last message is the answer if it is the assistant's.

        Args:
            messages: each with `role` and `content` (a text), and other keys that chat templates read.
            tools: descriptions of the tools, as chat templates read them.

        Raises:
            KeyError, TypeError, ValueError: a message without a role, or whose content is not a text.
        """
        turns = []
        for message in messages:
            more = {k: v for k, v in message.items() if k not in ("role", "content") and (v or k in UNLEARNED)}
            content = message["content"] or ""
            if not isinstance(content, str) or not isinstance(message["role"], str):
                raise TypeError("a message's role and content are not texts")
            turns.append(Turn(message["role"], content, json.dumps(more, ensure_ascii=False) if more else ""))
        answer, calls = None, ""
        if turns and turns[-1].role == "assistant":
            last = turns.pop()
            beside = json.loads(last.more) if last.more else {}
            calls = json.dumps(beside["tool_calls"], ensure_ascii=False) if beside.get("tool_calls") else ""
            thought = beside.get("reasoning_content")
            told = f"<think>\n{thought.strip()}\n</think>\n\n" if isinstance(thought, str) and thought.strip() else ""
            answer = "\n".join(part for part in (told + last.content, calls_text(calls)) if part)
        opened = bool(turns) and turns[0].role in SYSTEM
        system, spoken = (turns[0].content, turns[1:]) if opened else ("", turns)
        if len(turns) == 1 and turns[0].role == "user" and not (turns[0].more or tools or calls):
            return cls(turns[0].content, answer)
        last = next((turn for turn in reversed(spoken) if turn.role == "user"), spoken[-1] if spoken else Turn("", ""))
        offered = json.dumps(list(tools), ensure_ascii=False) if tools else ""
        return cls(last.content, answer, system, turns=tuple(turns), tools=offered, calls=calls)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def calls_text(calls: str) -> str:
    """Tool calls as text, one `{"name": …, "arguments": …}` a line: what is learned of them where no chat template
    writes them. Their ids, which are drawn at random, are left out.

    Args:
        calls: `tool_calls` as a JSON list, or empty.
    """
    lines = []
    for call in json.loads(calls) if calls else ():
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        with suppress(ValueError, TypeError, RecursionError):  # OpenAI writes them as a JSON text
            arguments = json.loads(arguments)
        lines.append(json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False))
    return "\n".join(lines)


REMEMBERED = 4  # layouts of earlier data that a task keeps


@dataclass(frozen=True)
class Layout:
    """The columns of a source that make an example.

    Attributes:
        name: the name of the layout in messages, such as `text/label`.
        input: joined by newlines in this order.
        chat: the column with the conversation; `completion` the one with its continuation, if that is separate.
        choices: the column with the options of a multiple-choice question.
        rejected: of preference pairs the column with the worse answers; `output` or `completion` has the better ones.
        desirable: of answers that were judged one by one the column that says whether each was liked.
        fields: columns that are the answer together, as one JSON object; `output` is then what the object is called.
        older: the layouts of what a task learned before, the newest first, as far as they read other columns.
    """

    name: str
    input: tuple[str, ...] = ()
    output: str | None = None
    instruction: str | None = None
    chat: str | None = None
    completion: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None
    choices: str | None = None
    references: str | None = None
    rejected: str | None = None
    desirable: str | None = None
    fields: tuple[str, ...] = ()
    older: tuple[Layout, ...] = ()

    @property
    def prefers(self) -> bool:
        """Whether the rows say which answers are wanted."""
        return self.rejected is not None or self.desirable is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        several = ("name", "input", "fields", "older", *(["output"] if self.fields else []))
        one = (getattr(self, name) for name in self.__dataclass_fields__ if name not in several)
        return tuple(dict.fromkeys(c for c in (*self.input, *one, *self.fields) if c is not None))

    def without_answer(self) -> Layout:
        """The layout with only the columns of the question."""
        return replace(self, output=None, references=None, completion=None, rejected=None, desirable=None, fields=())

    def covers(self, other: Layout) -> bool:
        """Whether it reads every column that the other one reads, each in the same way."""
        return self.name == other.name and all(
            not value or value == getattr(self, key) or (key == "input" and set(value) <= set(self.input))
            for key, value in replace(other, older=()).__dict__.items()
        )

    def after(self, before: Layout | None) -> Layout:
        """The layout of a task that has learned data with this one, and before them data with another one."""
        if before is None or before.covers(self):
            return before or self
        older = [one for one in (replace(before, older=()), *before.older) if not self.covers(one)]
        return replace(self, older=tuple(older[:REMEMBERED]))

    def to_json(self) -> dict[str, Any]:
        row = {key: value for key, value in replace(self, older=()).__dict__.items() if value}
        return {**row, **({"older": [one.to_json() for one in self.older]} if self.older else {})}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Layout:
        """The reverse of `to_json`; other keys are ignored.

        Raises:
            TypeError: a column's name is not a text.
        """
        known = {key: row[key] for key in cls.__dataclass_fields__ if row.get(key) is not None}
        several = {key: tuple(known.get(key, ())) for key in ("input", "fields")}
        older = tuple(cls.from_json({**one, "older": ()}) for one in [*known.get("older", ())][:REMEMBERED])
        found = cls(**{"name": "", **known, **several, "older": older})
        if not all(isinstance(text, str) for text in (found.name, *found.columns)):
            raise TypeError("a column's name is not a text")
        return found
