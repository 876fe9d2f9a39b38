"""What a chat template can do, found by letting it write small conversations: whether it works at all, and what it has
a place for. A template is a program of the base's authors: it may fail, or leave out in silence what it does not know.

Each probe is carried out once for a template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
from typing import Any

MARK = "\x02answer\x02"
PATIENCE = 20.0  # seconds for a conversation of one message
# long enough that a template that keeps only the beginning is found
QUESTION = f"Which harbour lies north of Oslo? {' '.join(f'({k})' for k in range(1500))} Name it."
NAME = "look_up_7f3a"
TOOL = {"type": "function", "function": {"name": NAME, "description": "x", "parameters": {"type": "object"}}}
# Mistral's templates insist on ids of nine characters.
CALL: Mapping[str, Any] = {"id": "a1b2c3d4e", "type": "function", "function": {"name": NAME, "arguments": {}}}
OPENINGS: tuple[list[dict[str, Any]], ...] = ([], [{"role": "system", "content": "x"}])  # some need a system message


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: str, prompt: bool) -> str:
    """What the tokenizer's chat template writes; raises whatever the template raises.

    Args:
        tools: a JSON list, or empty.
        prompt: whether to end where the assistant begins to answer.
    """
    return str(
        tokenizer.apply_chat_template(
            [{key: value for key, value in message.items() if key != "weight"} for message in messages],
            tools=json.loads(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    )


def once(tokenizer: Any, name: str, find: Callable[[Any], Any]) -> Any:
    """The result of `find` for a tokenizer's chat template, computed once for each template."""
    known = tokenizer.__dict__.setdefault("_adapterhub_chat", {})
    key = (name, str(tokenizer.chat_template))
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
    asked = [{"role": "user", "content": "x"}]
    return bool(once(tokenizer, "tools", lambda speaker: _writes(speaker, asked, NAME, tools=True)))


def takes_calls(tokenizer: Any) -> bool:
    """Whether the template writes the tools that an answer calls."""
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]
    return bool(once(tokenizer, "calls", lambda speaker: _writes(speaker, said, NAME, tools=False)))


def takes_results(tokenizer: Any) -> bool:
    """Whether the template writes what a tool has answered."""
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": MARK, "name": NAME, "tool_call_id": CALL["id"]},
    ]
    return bool(once(tokenizer, "results", lambda speaker: _writes(speaker, said, MARK, tools=False)))


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
            text = _in_time(lambda said=said: rendered(tokenizer, said, "", True))  # type: ignore[misc]
        except TimeoutError as error:
            return str(error)
        except Exception as error:  # a template is a program: it can fail in any way
            why = why or str(error).strip().partition("\n")[0] or type(error).__name__
            continue
        return "" if _plain(QUESTION) in _plain(text) else "it leaves out what the user says"
    return why


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


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
