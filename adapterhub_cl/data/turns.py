"""One cell → the messages of a conversation, in the forms of OpenAI, Anthropic, ShareGPT, LLaMA-Factory and axolotl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from adapterhub_cl.data.values import as_object, read_json, whole_characters, without_nan
from adapterhub_cl.errors import DataError
from adapterhub_cl.examples import UNLEARNED, is_learned

USER = {"user", "human", "prompter"}
ASSISTANT = {"assistant", "gpt", "bot", "model", "chatgpt", "function_call"}
TOOL = {"tool", "function", "ipython", "observation"}
ROLES = ("system", "developer", "user", "assistant", "tool")
TURN_HINT = 'write [{"role": …, "content": …}, …]'
CALL_HINT = 'write [{"type": "function", "function": {"name": …, "arguments": {…}}}]'
# How OpenAI's and axolotl's files say that an answer is not to be learned: {"weight": 0}, {"train": false}.
SWITCHES = ("weight", "train", "training")
ON, OFF = ("true", "yes", "on"), ("false", "no", "off")
# What the arguments of a call are called beside OpenAI's word, by Llama, LangChain and Anthropic.
ARGUMENTS = ("arguments", "parameters", "args", "input")
MEDIA = ("image", "audio", "video", "file")
THOUGHTS = ("thinking", "reasoning")  # Ollama's and OpenRouter's words for `reasoning_content`
# keys of a message that belong to what it says, and that neither templates nor prompt formats read
OF_A_MESSAGE = ("context", "passage", "documents", "attachments", "images", "files", *MEDIA)


def messages_of(value: Any, where: str, column: str, *, learned: bool = False) -> list[dict[str, Any]]:
    """The messages of a conversation: OpenAI's `role`/`content` or ShareGPT's `from`/`value`, or either as a JSON text,
    as a CSV file has them.

    Contents in parts are reduced to their texts; thoughts among them become `reasoning_content`, Anthropic's calls
    `tool_calls`, and its results messages of their own before the user's. ShareGPT's `function_call` and OpenAI's older
    `function_call` become `tool_calls`; a message that only calls tools has an empty content. An answer that is not to
    be learned has `"weight": 0`. Other keys (`name`, `reasoning_content`, …) are kept.

    Args:
        learned: whether answers are to be learned, so that none of them may be empty.

    Raises:
        DataError: it is not a list of such messages, a role is not a known one, or a message is not text.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = read_json(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: column {column!r} is not JSON ({error})", TURN_HINT) from None
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: column {column!r} is not a list of turns", TURN_HINT)
    found: list[dict[str, Any]] = []
    for k, turn in enumerate(value, 1):
        found += _messages(turn, f"{where}: turn {k} in column {column!r}", learned)
    return found


def answers_of(value: Any, where: str, column: str, *, learned: bool = False) -> list[dict[str, Any]]:
    """The messages that continue a conversation, see `messages_of`; a single message, or a text, is one answer."""
    if isinstance(value, Mapping):
        value = [value]
    elif isinstance(value, str) and value.strip() and not value.lstrip().startswith("["):
        value = [{"role": "assistant", "content": value}]
    return messages_of(value, where, column, learned=learned)


def past_last_answer(messages: Sequence[Mapping[str, Any]]) -> int:
    """The number of messages up to and with the last answer that is to be learned; 0 if there is none."""
    return max((k for k, message in enumerate(messages, 1) if is_learned(message)), default=0)


def _messages(turn: Any, which: str, learned: bool) -> list[dict[str, Any]]:
    """The message of a turn, after those that the results of tools in it become.

    Args:
        which: where it stands, for messages of errors.
        learned: see `messages_of`.
    """
    if not isinstance(turn, Mapping):
        raise DataError(f"{which} is not an object", TURN_HINT)
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    more = {k: v for k, v in turn.items() if k not in ("role", "from", "content", "value") and v is not None}
    if not isinstance(role, str) or not role.strip():
        raise DataError(f"{which} has no role", TURN_HINT)
    said = role.strip().lower()
    known = next((name for name, others in _OTHERS if said in others), said)
    if known not in ROLES:
        raise DataError(f"{which} has the role {role!r}", f"the roles are {', '.join(ROLES)}")
    if unread := [key for key in OF_A_MESSAGE if more.get(key)]:
        raise DataError(
            f"{which} ({known}) has {', '.join(map(repr, unread))}, which would be ignored",
            "write the text into its content, or remove the key",
        )
    if known == "assistant" and (told := [more.pop(key) for key in THOUGHTS if isinstance(more.get(key), str)]):
        more.setdefault("reasoning_content", told[0])
    if older := more.pop("function_call", None):
        more.setdefault("tool_calls", [older])
    results: list[dict[str, Any]] = []
    if said == "function_call" and (called := _called(content)):
        more["tool_calls"], content = called, ""
    if isinstance(content, list | tuple):
        content, results = _divided(content, known, more, which)
    if calls := more.get("tool_calls"):
        if known != "assistant":
            raise DataError(f"{which} ({known}) has tool calls, and only the assistant calls tools", CALL_HINT)
        if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
            raise DataError(f"{which}: tool_calls is not a list of calls with function names", CALL_HINT)
        more["tool_calls"] = [without_nan(_as_call(call), which) for call in calls]
        content = content or ""
    if not isinstance(content, str):
        lacks = "has no content" if content is None else "has a content that is not a text"
        raise DataError(f"{which} ({known}) {lacks}", TURN_HINT)
    thought = more.get("reasoning_content", "")
    if not isinstance(thought, str):
        raise DataError(f"{which} ({known}) has a reasoning_content that is not a text", "write a text, or null")
    off = [_is_off(more[name], name, which) for name in SWITCHES if name in more]
    more = {k: v for k, v in more.items() if k not in SWITCHES}
    if any(off) and known == "assistant":
        more |= UNLEARNED
    message = {"role": known, "content": whole_characters(content).strip(), **more}
    if learned and is_learned(message) and not (message["content"] or calls or thought.strip()):
        raise DataError(f"{which} (assistant) is empty", 'complete or remove the row, or give that message "weight": 0')
    return [*results, message] if message["content"] or not results else results


_OTHERS = (("user", USER), ("assistant", ASSISTANT), ("tool", TOOL))


def _divided(parts: Sequence[Any], role: str, more: dict[str, Any], which: str) -> tuple[str, list[dict[str, Any]]]:
    """The text of a content in parts, and the results of tools in it as messages.

    Args:
        more: the message's other keys, to which thoughts and calls are added.

    Raises:
        DataError: a part is none of these, and would be left out.
    """
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    results: list[dict[str, Any]] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "thinking" and role == "assistant":
            thoughts.append(_plain(part.get("thinking"), which))
        elif kind == "tool_use":
            calls.append({k: part[k] for k in ("id", "name", "input") if part.get(k) is not None})
        elif kind == "tool_result" and role in ("user", "tool"):
            of = part.get("tool_use_id")
            results.append({"role": "tool", "content": _plain(part.get("content"), which).strip()})
            results[-1] |= {} if of is None else {"tool_call_id": of}
        elif part is not None:
            texts.append(_text_of(part, which))
    own = more.get("tool_calls") or []
    if calls:
        more["tool_calls"] = [*own, *calls] if isinstance(own, list) else own
    if thoughts and isinstance(thought := more.get("reasoning_content", ""), str):
        more["reasoning_content"] = "\n".join(text for text in (thought, *thoughts) if text)
    return "\n".join(texts), results


def _plain(content: Any, which: str) -> str:
    """The text of a thought or of a tool's result, which may be in parts too."""
    parts = content if isinstance(content, list | tuple) else [content]
    return whole_characters("\n".join(_text_of(part, which) for part in parts if part is not None))


def _text_of(part: Any, which: str) -> str:
    """The text of one part.

    Raises:
        DataError: it is a picture or the like, which would be left out.
    """
    kind = str(part.get("type") or "") if isinstance(part, Mapping) else ""
    if medium := next((name for name in MEDIA if name in kind), ""):
        raise DataError(
            f"{which} holds {'an' if medium[0] in 'ai' else 'a'} {medium}, and only texts are read",
            "remove these rows, or describe what is shown in words",
        )
    text = part
    if isinstance(part, Mapping):
        text = part.get("refusal") if kind == "refusal" else part.get("text")
        if text is None and kind == "text":
            text = part.get("content")
        if isinstance(text, Mapping):
            text = text.get("value")
    if isinstance(text, str):
        return text
    what = kind or ("object" if isinstance(part, Mapping) else type(part).__name__)
    raise DataError(
        f"{which} holds a part that is no text (its type: {what})",
        'write {"type": "text", "text": …}, or remove these rows',
    )


def _called(content: Any) -> list[Any]:
    """The calls in ShareGPT's `function_call`, which is JSON; empty if it is anything else."""
    try:
        found = read_json(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        return []
    calls = found if isinstance(found, list) else [found]
    return calls if all(_is_call(call) for call in calls) else []


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str) and bool(function["name"])


def _as_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call in OpenAI's form, its arguments as templates read them: an object, if they are one or are JSON of one."""
    bare = "function" not in call
    function = {k: v for k, v in call.items() if k not in ("id", "type")} if bare else dict(call["function"])
    beside = {k: v for k, v in call.items() if k == "id" or (k not in ("type", "function") and not bare)}
    given = next((name for name in ARGUMENTS if function.get(name) is not None), "arguments")
    arguments = function.pop(given, None)
    arguments = {} if arguments is None else as_object(arguments)
    return {**beside, "type": "function", "function": {**function, "arguments": arguments}}


def _is_off(value: Any, name: str, which: str) -> bool:
    """Whether a switch says that an answer is not to be learned.

    Raises:
        DataError: it says neither this nor the opposite.
    """
    text = str(value).strip().lower() if isinstance(value, str | int | float | Decimal) else ""
    if text in (*ON, *OFF):
        return text in OFF
    with suppress(ValueError):
        if math.isfinite(number := float(text)) and number >= 0:
            return number == 0
    raise DataError(
        f"{which}: {name!r} is {value!r}, which says neither to learn the answer nor to leave it out",
        f"write {', '.join(ON)} or a number above 0 to learn it; {', '.join(OFF)} or 0 to leave it out",
    )
