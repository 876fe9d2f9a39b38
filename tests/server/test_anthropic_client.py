"""Anthropic's own client against a running server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from server_support import Running

from adapterhub_cl.server.api_keys import add_key

TICKET = "they charged my card twice"


def client_of(served: Running, **options: Any) -> anthropic.Anthropic:
    return served.keep(anthropic.Anthropic(base_url=served.url, max_retries=0, **{"api_key": "none", **options}))


def asked(text: str = TICKET, **more: Any) -> dict[str, Any]:
    return {"model": "auto", "max_tokens": 20, "messages": [{"role": "user", "content": text}], **more}


def test_an_answer(served: Running) -> None:
    answer = client_of(served).messages.create(**asked(system="Sort the tickets."))
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "tickets@v1")
    assert [(part.type, part.text) for part in answer.content] == [("text", "billing")]
    assert answer.stop_reason == "end_turn"
    assert answer.usage.input_tokens > 1
    assert answer.usage.output_tokens >= 1


def test_a_stream_says_the_same(served: Running) -> None:
    wanted = asked("who runs the bakery", model="facts", max_tokens=2)
    client = client_of(served)
    whole = client.messages.create(**wanted)
    with client.messages.stream(**wanted) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == whole.content[0].text == last.content[0].text
    assert last.stop_reason == whole.stop_reason == "max_tokens"
    assert last.usage.output_tokens == whole.usage.output_tokens == 2
    assert last.usage.input_tokens == whole.usage.input_tokens
    assert stream.response.headers["x-adapter"] == "facts@v1"


def test_a_stop_sequence_is_named(served: Running) -> None:
    client = client_of(served)
    whole = client.messages.create(**asked("who runs the bakery", model="base", max_tokens=8)).content[0].text
    stop = whole.strip()[2:4]
    answer = client.messages.create(**asked("who runs the bakery", model="base", max_tokens=8, stop_sequences=[stop]))
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == whole[: whole.index(stop)]


def test_errors_have_anthropics_form(served: Running) -> None:
    client = client_of(served)
    with pytest.raises(anthropic.NotFoundError) as none:
        client.messages.create(**asked(model="nothing"))
    assert none.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="tools"):
        client.messages.create(**asked(tools=[{"name": "f", "input_schema": {"type": "object"}}]))
    with pytest.raises(anthropic.BadRequestError, match="the last message must be the user's"):
        client.messages.create(**asked(messages=[{"role": "assistant", "content": "hello"}]))
    with pytest.raises(anthropic.BadRequestError, match="at most"):
        client.messages.create(**asked(max_tokens=20_000))
    with pytest.raises(anthropic.BadRequestError) as streamed:
        client.messages.create(**asked(max_tokens=10**6, stream=True))
    assert streamed.value.body["type"] == "error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="'user' or 'assistant'"):
        client.messages.create(**asked(messages=[{"role": "tool", "content": "x"}]))
    malformed = httpx2.post(f"{served.url}/v1/messages", json={"messages": []})
    assert malformed.status_code == 400
    assert set(malformed.json()) == {"type", "error"}


def test_keys_come_in_anthropics_header(serving: Callable[..., Running], tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", "alice", "ask")
    served = serving(keys=str(tmp_path / "keys.json"))
    assert client_of(served, api_key=secret).messages.create(**asked()).content[0].text == "billing"
    with pytest.raises(anthropic.AuthenticationError):
        client_of(served, api_key="wrong").messages.create(**asked())
