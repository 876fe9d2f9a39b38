"""What the server refuses, and how: OpenAI's form, the right status, one line that says what to do."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from server_support import Running

from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.server.api_keys import add_key, found_by, read_keys
from adapterhub_cl.server.running import _listen
from adapterhub_cl.server.serve_options import ServeOptions

ASKED = {"model": "auto", "messages": [{"role": "user", "content": "they charged my card twice"}]}
Start = Callable[..., Running]


def post(served: Running, body: Any, route: str = "chat/completions", **headers: str) -> httpx2.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers}
    return httpx2.post(f"{served.url}/v1/{route}", content=raw, headers=headers, timeout=60)


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"model": "nothing"}, 404, "nothing"),
        ({"model": "tickets@v9"}, 404, "tickets"),
        ({"model": "../tickets"}, 400, "not a valid name"),
        ({"model": 7}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "empty"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, 400, "last message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "only texts are read",
        ),
        ({"messages": "hello"}, 400, "messages"),
        ({"max_tokens": 1_000_000}, 400, "at most 1024"),
        ({"max_completion_tokens": 1_000_000}, 400, "max_completion_tokens is 1000000"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 1000}, 400, "n:"),
        ({"stop": [""]}, 400, "stop"),
        ({"seed": "x"}, 400, "seed"),
        ({"tools": [{"type": "function"}]}, 400, "'tools'"),
        ({"response_format": {"type": "json_object"}}, 400, "'response_format'"),
        ({"top_logprobs": 3, "logprobs": True}, 400, "top_logprobs"),
        ({"stream": True, "logprobs": True}, 400, "whole answers"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_requests(served: Running, change: dict[str, Any], status: int, word: str) -> None:
    for stream in ({}, {"stream": True}):
        answer = post(served, {**ASKED, **stream, **change})
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert word in error["message"]
        assert error["type"] == "invalid_request_error"
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("prompt", [[], ["x"] * 129, "", [1], None])
def test_bad_prompts(served: Running, prompt: Any) -> None:
    answer = post(served, {"model": "base", "prompt": prompt, "max_tokens": 1}, "completions")
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'"text"', b"[" * 100_000], ids=str)
def test_malformed_bodies(served: Running, body: bytes) -> None:
    answer = post(served, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_not_said_to_be_json(served: Running) -> None:
    answer = httpx2.post(f"{served.url}/v1/chat/completions", content=json.dumps(ASKED).encode())
    assert answer.status_code == 400
    assert "content-type: application/json" in answer.json()["error"]["message"]


def test_a_damaged_hub_is_said_without_naming_files(serving: Start, caplog: pytest.LogCaptureFixture) -> None:
    served = serving()
    weights = served.hub.path("reviews@v1") / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    answer = post(served, {**ASKED, "model": "reviews"})
    assert answer.status_code == 500
    assert "the server's log says where" in answer.json()["error"]["message"]
    assert "safetensors" not in answer.text
    assert "SHA-256 differs" in caplog.text
    assert post(served, ASKED).status_code == 200
    folder = served.hub.folder
    folder.rename(folder.with_name("gone"))
    assert httpx2.get(f"{served.url}/health/ready").status_code == 503
    assert post(served, ASKED).status_code == 503
    folder.with_name("gone").rename(folder)
    assert httpx2.get(f"{served.url}/health/ready").status_code == 200


def test_other_paths_and_methods(served: Running) -> None:
    assert httpx2.get(f"{served.url}/v1/nothing").json()["error"]["code"] == "not_found"
    assert httpx2.get(f"{served.url}/v1/chat/completions").json()["error"]["code"] == "method_not_allowed"
    assert httpx2.get(f"{served.url}/health/live").json() == {"status": "alive"}
    assert httpx2.get(f"{served.url}/health/ready").status_code == 200


def test_a_body_that_is_too_large(serving: Start) -> None:
    served = serving(max_body=2000)
    whole = post(served, {**ASKED, "user": "x" * 3000})
    assert whole.status_code == 413
    assert whole.json()["error"]["code"] == "too_large"
    assert 'status="413"' in httpx2.get(f"{served.url}/metrics").text

    def drops() -> Any:
        yield b'{"user": "'
        for _ in range(100):
            yield b"x" * 1000

    with httpx2.Client() as client:  # no content-length: it is counted as it comes
        answer = client.post(
            f"{served.url}/v1/chat/completions", content=drops(), headers={"content-type": "application/json"}
        )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"
    assert post(served, ASKED).status_code == 200


def test_a_client_does_not_choose_what_the_server_fetches(served: Running, tmp_path: Path) -> None:
    store = tmp_path / "store"
    served.hub.push(store, "tickets@v1")
    for model in (f"file://{store}/tickets@v1", "memory://x/tickets@v1", "hf://owner/repo/tickets@v1"):
        for route in ("predict", "models"):
            said = (
                httpx2.post(f"{served.url}/v1/predict", json={"inputs": ["a"], "model": model}, timeout=60)
                if route == "predict"
                else httpx2.get(f"{served.url}/v1/models/{model}", timeout=60)
            )
            assert said.status_code in (400, 404), said.text
    assert "pull" not in {event.verb for event in served.hub.registry.events()}


def test_hints_for_the_shell_are_not_sent_to_clients(served: Running) -> None:
    said = httpx2.post(f"{served.url}/v1/predict", json={"inputs": ["a"], "model": "tickts@v1"}, timeout=60).json()
    assert "did you mean tickets" in said["error"]["message"]
    assert "cl-adapter" not in said["error"]["message"]


def test_keys_and_roles(serving: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    reader, asker = add_key(file, "rita", "read"), add_key(file, "anna", "ask")
    assert asker not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    served = serving(keys=str(file))
    assert post(served, ASKED).status_code == 401
    assert post(served, ASKED, authorization="Bearer clk-wrong").json()["error"]["code"] == "invalid_api_key"
    assert post(served, ASKED, authorization=f"Basic {asker}").status_code == 401
    assert post(served, ASKED, authorization=f"Bearer {reader}").status_code == 403
    assert post(served, ASKED, authorization=f"Bearer {asker}").status_code == 200
    assert next(m.id for m in served.client(reader).models.list()) == "auto"
    with pytest.raises(openai.AuthenticationError):
        served.client("none").models.list()
    assert httpx2.get(f"{served.url}/metrics").status_code == 401
    page = httpx2.get(f"{served.url}/")
    assert (page.status_code, page.headers["www-authenticate"][:5]) == (401, "Basic")
    assert httpx2.get(f"{served.url}/", auth=("rita", reader)).status_code == 200
    assert httpx2.get(f"{served.url}/", auth=("rita", "x")).status_code == 401
    assert httpx2.get(f"{served.url}/", headers={"authorization": "Basic %%%"}).status_code == 401
    assert post(served, ASKED, authorization=f"Basic {asker}").status_code == 401, "Basic is for the page alone"
    assert httpx2.get(f"{served.url}/health/ready").status_code == 200


NO_KEYS = ("", "[]", "{}", '{"keys": []}', '{"keys": [{"name": "a"}]}', '{"keys": 3}')


@pytest.mark.parametrize("text", [*NO_KEYS, '{"keys": [{"name": "a", "role": "king", "sha256": "0"}]}'])
def test_files_that_are_no_keys(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(DataError):
        read_keys(file)
    with pytest.raises(DataError):
        add_key(file, "me", "ask")
    assert file.read_text() == text


def test_a_key_has_a_name_of_its_own_and_a_known_role(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = add_key(file, "me", "ask")
    for name, role in (("me", "ask"), ("you", "king"), ("", "ask"), ("a\nb", "ask")):
        with pytest.raises(UsageError):
            add_key(file, name, role)
    (key,) = read_keys(file)
    assert found_by([key], secret) is key
    assert found_by([key], secret + "x") is None


def test_a_rate_for_each_key(serving: Start) -> None:
    served = serving(rate="3/minute")
    codes = [post(served, ASKED).status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    assert post(served, ASKED).headers["retry-after"] == "1"
    assert httpx2.get(f"{served.url}/v1/models").status_code == 200, "reading is not counted"


def test_a_deadline(serving: Start) -> None:
    served = serving(deadline=0.001, max_tokens=400)
    body = {**ASKED, "model": "base", "max_tokens": 400}
    answer = post(served, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    streamed = post(served, {**body, "stream": True})
    assert "deadline_exceeded" in streamed.text


def test_who_hangs_up_frees_the_row(serving: Start) -> None:
    served = serving(max_tokens=450)
    body = json.dumps({**ASKED, "model": "base", "max_tokens": 450, "temperature": 1.0}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
    host, port = served.url.removeprefix("http://").split(":")
    for stream in (body, body[:-1] + b', "stream": true}'):
        with socket.create_connection((host, int(port))) as client:
            client.sendall(f"{head}{len(stream)}\r\n\r\n".encode() + stream)
            time.sleep(0.4)
    started = time.monotonic()
    assert post(served, ASKED).status_code == 200
    assert time.monotonic() - started < 20
    deadline = time.monotonic() + 20
    while "adapterhub_requests_running 1.0" not in httpx2.get(f"{served.url}/metrics").text:
        assert time.monotonic() < deadline, "a request of a client that is gone still runs"
        time.sleep(0.1)


def test_slow_clients_do_not_stop_the_others(served: Running) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        for client in slow:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
        assert post(served, ASKED).status_code == 200
    finally:
        for client in slow:
            client.close()


def test_running_requests_are_finished_when_it_ends(serving: Start) -> None:
    served = serving(max_tokens=64)
    found: list[httpx2.Response] = []
    body = {**ASKED, "model": "base", "max_tokens": 64}
    threads = [threading.Thread(target=lambda: found.append(post(served, body))) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    served.server.should_exit = True
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in found] == [200] * 4


def test_a_version_that_is_removed_meanwhile_is_unknown_and_the_rest_goes_on(serving: Start) -> None:
    served = serving()
    assert post(served, {**ASKED, "model": "reviews@v1"}).status_code == 200
    served.hub.forget_task("reviews")
    assert post(served, {**ASKED, "model": "reviews@v1"}).status_code == 404
    assert post(served, {**ASKED, "model": "reviews"}).status_code == 404
    assert post(served, ASKED).json()["model"] == "tickets@v1"


def test_the_log_has_no_text(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="adapterhub_cl.server"):
        post(served, ASKED)
        until = time.monotonic() + 30
        while "/v1/chat/completions" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)  # it is written once the answer has gone out
    rows = [json.loads(record.message) for record in caplog.records]  # others of this process may be among them
    told = [(row["route"], row["status"], row.get("x-adapter")) for row in rows]
    assert ("/v1/chat/completions", 200, "tickets@v1") in told
    assert "charged" not in caplog.text


def test_options_that_cannot_be_used(tmp_path: Path) -> None:
    for wrong in ({"port": 70000}, {"deadline": 0}, {"max_tokens": 0}, {"host": "0.0.0.0"}, {"drain": -1}):
        with pytest.raises(UsageError):
            ServeOptions(**wrong)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="is in use"):
            _listen(ServeOptions(port=taken.getsockname()[1]))
    with pytest.raises(UsageError, match="cannot be listened on"):
        _listen(ServeOptions(host="203.0.113.9", keys="keys.json", port=0))
