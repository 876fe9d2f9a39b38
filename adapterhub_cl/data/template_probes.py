"""What a chat template can do, found by letting it write small conversations: whether it works at all, and what it has
a place for. A template is a program of the base's authors: it may fail, or leave out in silence what it does not know.

Each probe is carried out once for a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from threading import Thread
from typing import Any

from adapterhub_cl.data.values import as_object
from adapterhub_cl.examples import SYSTEM

MARK = "\x02answer\x02"
PATIENCE = 20.0  # seconds for a conversation
# long enough that a template that keeps only the beginning is found
QUESTION = f"Which harbour lies north of Oslo? {' '.join(f'({k})' for k in range(1500))} Name it."
NAME = "look_up_7f3a"
TOOL = {"type": "function", "function": {"name": NAME, "description": "x", "parameters": {"type": "object"}}}
# Mistral's templates insist on ids of nine characters.
CALL: Mapping[str, Any] = {"id": "a1b2c3d4e", "type": "function", "function": {"name": NAME, "arguments": {}}}
FOLLOWS = {("user", "assistant"), ("assistant", "user")} | {
    ("assistant", "tool"), ("tool", "tool"), ("tool", "assistant")
}  # fmt: skip
COMPARED = 40  # characters at each end of a message
SWITCHES = re.compile(r"/(?:no_)?think\b")  # words by which some models switch thoughts on and off: not text
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
OPENINGS: tuple[list[dict[str, Any]], ...] = ([], [{"role": "system", "content": "x"}])  # some need a system message


class EndlessTemplateError(Exception):
    """The template takes longer than `PATIENCE` for a conversation; it is not asked again."""


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: str, prompt: bool) -> str:
    """What the tokenizer's chat template writes; raises whatever the template raises. The first conversation of each
    sequence of roles has `PATIENCE` to end.

    Args:
        tools: a JSON list, or empty.
        prompt: whether to end where the assistant begins to answer.

    Raises:
        EndlessTemplateError: it did not end in time, now or once before.
    """
    known, key = _known(tokenizer), ("endless", str(tokenizer.chat_template))
    if key in known:
        raise EndlessTemplateError(known[key])

    def write() -> str:
        return str(
            tokenizer.apply_chat_template(
                [{name: value for name, value in message.items() if name != "weight"} for message in messages],
                tools=json.loads(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        )

    ended = known.setdefault(("ended", str(tokenizer.chat_template)), set())
    shape = (tuple(message["role"] for message in messages), bool(tools), prompt)
    if shape in ended:  # on a busy machine a thread of its own would take longer than the template
        return write()
    try:
        text = _in_time(write)
    except TimeoutError as error:
        known[key] = str(error)
        raise EndlessTemplateError(str(error)) from None
    ended.add(shape)
    return text


def _known(tokenizer: Any) -> dict[tuple[str, str], Any]:
    """What was found out about the tokenizer's templates."""
    found: dict[tuple[str, str], Any] = tokenizer.__dict__.setdefault("_adapterhub_chat", {})
    return found


def once(tokenizer: Any, name: str, find: Callable[[Any], Any]) -> Any:
    """The result of `find` for a tokenizer's chat template, computed once for each template."""
    known, key = _known(tokenizer), (name, str(tokenizer.chat_template))
    if key not in known:
        known[key] = find(tokenizer)
    return known[key]


def why_broken(tokenizer: Any) -> str:
    """What is wrong with the template whatever it is given; empty if it works."""
    return str(once(tokenizer, "broken", _why_broken))


def keeps_turns(tokenizer: Any) -> bool:
    """Whether a conversation's earlier turns are in its prompt."""
    return bool(once(tokenizer, "turns", _keeps_turns))


def takes_system(tokenizer: Any) -> bool:
    """Whether the template has a place for a system message; Gemma's refuses one, and others leave it out."""
    return bool(once(tokenizer, "system", _writes_system))


def takes_tools(tokenizer: Any) -> bool:
    """Whether the template has a place for the tools that may be called."""
    return bool(once(tokenizer, "tools", lambda speaker: _writes(speaker, ASKED, NAME, tools=True)))


def takes_calls(tokenizer: Any) -> bool:
    """Whether the template writes the tools that an answer calls."""
    said = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    return bool(once(tokenizer, "calls", lambda speaker: _writes(speaker, said, NAME, tools=False)))


def takes_results(tokenizer: Any) -> bool:
    """Whether the template writes what a tool has answered."""
    said = [
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": MARK, "name": NAME, "tool_call_id": CALL["id"]},
    ]
    return bool(once(tokenizer, "results", lambda speaker: _writes(speaker, said, MARK, tools=False)))


def called_as_read(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with the arguments of their calls in the form that the template reads: most read objects, as
    transformers documents them; some, such as DeepSeek's, put them into the text as they are and need a JSON text.
    OpenAI's clients send a JSON text, which the former would encode once more."""
    as_text = once(tokenizer, "arguments", _reads_text)

    def read(call: Mapping[str, Any]) -> Mapping[str, Any]:
        function = call.get("function")
        if not isinstance(function, Mapping):
            return call
        given = as_object(function.get("arguments"))
        if as_text and isinstance(given, Mapping):
            given = json.dumps(given, ensure_ascii=False)
        return {**call, "function": {**function, "arguments": given}}

    return [
        {**message, "tool_calls": [read(call) for call in calls]} if (calls := message.get("tool_calls")) else message
        for message in messages
    ]


def alternate(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a system message is the first one, and user and assistant then take turns, the user first; an assistant
    who has called tools goes on after their results."""
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles and roles[0] in SYSTEM else roles
    return spoken[:1] == ["user"] and all(pair in FOLLOWS for pair in pairwise(spoken))


def left_out(messages: Sequence[Mapping[str, Any]], text: str) -> str:
    """Which message of the user or the system a template has cut or left out of what it wrote; empty if none.
    Differences of case and of white space do not count, nor words that switch thoughts on and off. Neither answers are
    looked at, because templates drop the thoughts of earlier ones, nor results of tools, which some write as JSON."""
    written = _plain(text)
    for number, message in enumerate(messages, 1):
        said = _plain(str(message["content"] or "")) if message["role"] not in ("assistant", "tool") else ""
        if said[:COMPARED] not in written or said[-COMPARED:] not in written:
            return f"message {number} ({message['role']}) is not there as it was given"
    return ""


def is_in(said: str, text: str) -> bool:
    """Whether a text has an answer in it, whatever the case and the white space; its thoughts may be missing."""
    return _plain(said.rpartition("</think>")[2]) in _plain(text)


def _reads_text(tokenizer: Any) -> bool:
    """Whether the template needs the arguments of a call as a JSON text."""
    forms: tuple[Any, ...] = {"town": "x7f3a"}, '{"town": "x7f3a"}'
    for opening in OPENINGS:
        found = []
        for form in forms:
            call = {**CALL, "function": {"name": NAME, "arguments": form}}
            said = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]
            try:
                found.append(rendered(tokenizer, [*opening, *said], "", False))
            except Exception:  # whatever a template raises
                found.append("")
        if any(found):
            return ("x7f3a" not in found[0] or "'town'" in found[0]) and '"town"' in found[1]
    return False


def _writes(tokenizer: Any, said: Sequence[Mapping[str, Any]], what: str, *, tools: bool) -> bool:
    """Whether a text is in what the template writes. A template that raises is not silent: True."""
    failed = True
    for opening in OPENINGS:
        try:
            text = rendered(tokenizer, [*opening, *said], json.dumps([TOOL]) if tools else "", False)
        except Exception:  # whatever a template raises
            continue
        failed = False
        if what in text:
            return True
    return failed


def _writes_system(tokenizer: Any) -> bool:
    said = [{"role": "system", "content": MARK}, {"role": "user", "content": "x"}]
    try:
        return MARK in rendered(tokenizer, said, "", True)
    except Exception:  # whatever a template raises
        return False


def _keeps_turns(tokenizer: Any) -> bool:
    said = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": MARK},
        {"role": "user", "content": "x"},
    ]
    for opening in OPENINGS:
        try:
            text = rendered(tokenizer, [*opening, *said], "", True)
        except Exception:  # whatever a template raises: it is not silent
            continue
        return _plain(QUESTION) in _plain(text) and _plain(MARK) in _plain(text)
    return True


def _why_broken(tokenizer: Any) -> str:
    why = ""
    for opening in OPENINGS:
        said = [*opening, {"role": "user", "content": QUESTION}]
        try:
            text = rendered(tokenizer, said, "", True)
        except Exception as error:  # a template is a program: it can fail in any way
            why = why or str(error).strip().partition("\n")[0] or type(error).__name__
            continue
        return "" if _plain(QUESTION) in _plain(text) else "it leaves out what the user says"
    return why


def _plain(text: str) -> str:
    return " ".join(SWITCHES.sub(" ", text).casefold().split())


def _in_time(write: Callable[[], str]) -> str:
    """What `write` returns or raises.

    Raises:
        TimeoutError: it takes longer than `PATIENCE`. Its thread goes on, but does not keep the process alive.
    """
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(write())
        except Exception as error:
            found.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not found:
        raise TimeoutError(f"it does not end within {PATIENCE:.0f} seconds")
    if isinstance(found[0], Exception):
        raise found[0]
    return str(found[0])
