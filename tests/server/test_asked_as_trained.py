"""A conversation over HTTP is asked as the same conversation is in training data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapterhub_cl.data.columns import inputs
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.server.openai_routes import conversation_of_messages
from adapterhub_cl.server.wire import ChatMessage

CALL = {"id": "abc123def", "type": "function", "function": {"name": "w", "arguments": json.dumps({"t": 1})}}
ASKED = {"role": "user", "content": "hi"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "5", "tool_call_id": "abc123def"}


@pytest.mark.parametrize(
    "messages",
    [
        [ASKED],
        [{"role": "system", "content": "Be brief."}, ASKED],
        [{"role": "developer", "content": "Be brief."}, ASKED],
        [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}],
        [{**ASKED, "name": "Ann"}],
        [ASKED, CALLED, RESULT],
        [ASKED, CALLED, RESULT, {"role": "user", "content": "so?"}],
        [ASKED, {"role": "assistant", "content": "yo", "reasoning_content": "a thought"}, ASKED],
        [ASKED, {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "w", "input": {"t": 1}}]},
         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "5"}]}],
    ],
)  # fmt: skip
def test_the_same_example(messages: list[dict[str, Any]]) -> None:
    [trained] = inputs(SourceRows([{"messages": messages}], "x.jsonl", "", [1]))
    assert conversation_of_messages([ChatMessage(**message) for message in messages]) == trained
