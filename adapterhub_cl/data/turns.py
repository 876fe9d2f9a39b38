"""One cell → the messages of a conversation, in the forms of OpenAI, ShareGPT, LLaMA-Factory and axolotl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub_cl.data.values import whole_characters
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
MEDIA = ("image", "audio", "video", "file")


def messages_of(value: Any, where: str, column: str) -> list[dict[str, Any]]:
    """The messages of a conversation: OpenAI's `role`/`content` or ShareGPT's `from`/`value`, or either as a JSON text,
    as a CSV file has them.

    Contents in parts are reduced to their texts. ShareGPT's `function_call` and OpenAI's older `function_call` become
    `tool_calls`; a message that only calls tools has an empty content. An answer that is not to be learned has
    `"weight": 0`. Other keys (`name`, `reasoning_content`, …) are kept.

    Raises:
        DataError: it is not a list of such messages, a role is not a known one, or a message is not text.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: column {column!r} is not JSON ({error})", TURN_HINT) from None
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: column {column!r} is not a list of turns", TURN_HINT)
    return [_message(turn, f"{where}: turn {k} in column {column!r}") for k, turn in enumerate(value, 1)]


def answers_of(value: Any, where: str, column: str) -> list[dict[str, Any]]:
    """The messages that continue a conversation, see `messages_of`; a single message, or a text, is one answer."""
    if isinstance(value, Mapping):
        value = [value]
    elif isinstance(value, str) and value.strip() and not value.lstrip().startswith("["):
        value = [{"role": "assistant", "content": value}]
    return messages_of(value, where, column)


def past_last_answer(messages: Sequence[Mapping[str, Any]]) -> int:
    """The number of messages up to and with the last answer that is to be learned; 0 if there is none."""
    return max((k for k, message in enumerate(messages, 1) if is_learned(message)), default=0)


def _message(turn: Any, which: str) -> dict[str, Any]:
    """One message.

    Args:
        which: where it stands, for messages of errors.
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
    if isinstance(content, list | tuple):
        content = _text_of(content, which)
    if said == "function_call" and (called := _called(content)):
        more["tool_calls"], content = called, ""
    if isinstance(older := more.pop("function_call", None), Mapping):
        more.setdefault("tool_calls", [{"type": "function", "function": dict(older)}])
    if calls := more.get("tool_calls"):
        if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
            raise DataError(f"{which}: tool_calls is not a list of calls with function names", CALL_HINT)
        content = content or ""
    if not isinstance(content, str):
        lacks = "has no content" if content is None else "has a content that is not a text"
        raise DataError(f"{which} ({known}) {lacks}", TURN_HINT)
    off = any(name in more and more[name] in (0, False, "0", "false") for name in SWITCHES)
    more = {k: v for k, v in more.items() if k not in SWITCHES}
    if off and known == "assistant":
        more |= UNLEARNED
    return {"role": known, "content": whole_characters(content).strip(), **more}


_OTHERS = (("user", USER), ("assistant", ASSISTANT), ("tool", TOOL))


def _text_of(parts: list[Any] | tuple[Any, ...], which: str) -> str:
    """The text of a content in parts.

    Raises:
        DataError: a part is a picture or the like, which would be left out.
    """
    found = []
    for part in parts:
        kind = str(part.get("type") or "") if isinstance(part, Mapping) else ""
        if medium := next((name for name in MEDIA if name in kind), ""):
            raise DataError(
                f"{which} holds {'an' if medium[0] in 'ai' else 'a'} {medium}, and only texts are read",
                "remove these rows, or describe what is shown in words",
            )
        text = part.get("text") if isinstance(part, Mapping) else part
        found += [text] if isinstance(text, str) else []
    return "\n".join(found)


def _called(content: Any) -> list[dict[str, Any]]:
    """The calls in ShareGPT's `function_call`, which is JSON; empty if it is anything else."""
    try:
        found = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        return []
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and _is_call(call) for call in calls):
        return []
    return [dict(c) if "function" in c else {"type": "function", "function": dict(c)} for c in calls]


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str) and bool(function["name"])
