"""`verify --against`: what a server retains is told, and a server that lost the task is refused."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import DataError, ServerError, UsageError
from adapterhub_cl.evaluation import replaying
from adapterhub_cl.evaluation.replaying import KEY, refused

LABELS = ("red", "blue")
heard: list[str] = []  # the keys that came with requests


@pytest.fixture(scope="module")
def hub(pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    folder = tmp_path_factory.mktemp("replaying")
    made = AdapterHub.init(folder / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    rows = [{"instruction": "Which?", "input": f"{c} {k}", "output": c} for k in range(12) for c in LABELS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {
        "kind": "choice",
        "epochs": 1,
        "rank": 4,
        "learning_rate": 0.02,
        "batch_size": 4,
        "dev_share": 0.0,
    }
    made.add_task("colours", folder / "rows.jsonl", eval=folder / "rows.jsonl", **options)
    assert made.get("colours").metrics["accuracy"] >= 0.5
    return made


@contextmanager
def served(
    answer: Callable[[dict[str, Any]], str], models: Any = ("colours@v1",), key: str = "", *, moved: str = ""
) -> Iterator[str]:
    """A server that answers each request by a function, or sends who asks elsewhere; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def _give(self, code: int, told: Any) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def do_GET(self) -> None:
            if moved:
                self.send_response(302)
                self.send_header("Location", moved + self.path)
                self.end_headers()
                return
            heard.append(self.headers.get("Authorization", ""))
            self._give(200, {"data": [{"id": name} for name in models]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if key and self.headers.get("Authorization") != f"Bearer {key}":
                self._give(401, {"error": {"message": "no\nsuch key"}})
                return
            self._give(200, {"choices": [{"text": answer(asked)}]})

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def right(asked: dict[str, Any]) -> str:
    assert asked["temperature"] == 0.0
    return " blue" if "blue" in asked["prompt"] else " red"


def test_a_server_that_answers_right(hub: AdapterHub) -> None:
    prompts: list[str] = []
    with served(lambda asked: prompts.append(asked["prompt"]) or right(asked)) as url:
        found = hub.verify_against(f"{url}/v1")[0]
    assert (found.ref, found.model, found.lost) == ("colours@v1", "colours@v1", [])
    assert found.tasks["colours"].n == len(prompts) == 24
    assert found.tasks["colours"].retention >= 1.0
    assert refused([found]) is None
    assert "Which?" in prompts[0]
    assert not prompts[0].startswith("<s>")  # servers put it there themselves


def test_the_key_goes_to_no_other_server(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    heard.clear()
    with served(right) as other, served(right, moved=other) as url:
        with pytest.raises(ServerError, match="answers 302"):
            hub.verify_against(url, ["colours"], rows=2)
        assert heard == []
        assert hub.verify_against(other, ["colours"], rows=2)[0].lost == []
    assert heard == ["Bearer secret"]


def test_a_server_that_lost_the_task(hub: AdapterHub) -> None:
    with served(lambda asked: "green") as url:
        found = hub.verify_against(url, ["colours"], rows=6)
    assert found[0].lost == ["colours"]
    assert found[0].tasks["colours"].n == 6
    error = refused(found)
    assert error is not None
    assert error.exit_code == 3
    assert "retains less than 0.97 of colours 0.000" in error.message
    with served(lambda asked: "green") as url:
        assert hub.verify_against(url, ["colours"], rows=6, min_retention=0.0)[0].lost == []


def test_the_models_name(hub: AdapterHub) -> None:
    with served(right, ["colours"]) as url:
        assert hub.verify_against(url, ["colours"], rows=2)[0].model == "colours"
    with served(right, ["model.gguf"]) as url:  # its only one
        assert hub.verify_against(url, ["colours"], rows=2)[0].model == "model.gguf"
    with served(right, ["a", "b"]) as url:
        assert hub.verify_against(url, ["colours"], model="b", rows=2)[0].model == "b"
        with pytest.raises(UsageError, match="no model colours@v1") as caught:
            hub.verify_against(url, ["colours"], rows=2)
    assert "it has a, b" in caught.value.hint


def test_servers_that_fail(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(right, key="secret") as url:
        with pytest.raises(ServerError, match="answers 401: no such key") as caught:
            hub.verify_against(url, rows=2)
        assert KEY in caught.value.hint
        monkeypatch.setenv(KEY, "secret")
        assert hub.verify_against(url, rows=2)[0].lost == []
    with pytest.raises(ServerError, match="cannot be asked"):
        hub.verify_against(url)  # it is gone
    for wrong in ("file:///etc/passwd", "localhost:80", ""):
        with pytest.raises(UsageError, match="is not the URL of a server"):
            hub.verify_against(wrong)
    with served(lambda asked: "", models=()) as url, pytest.raises(UsageError, match="no model") as none:
        hub.verify_against(url)
    assert none.value.hint == "it lists no model at all"
    for strange in (None, 5, ["red"]):
        with served(lambda asked, told=strange: told) as url, pytest.raises(ServerError, match="gives no text"):  # type: ignore[misc]
            hub.verify_against(url, rows=2)


def test_a_server_that_does_not_stop(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "MOST_BYTES", 1000)
    with served(lambda asked: "x" * 2000) as url, pytest.raises(ServerError, match="does not answer in JSON"):
        hub.verify_against(url, rows=2)
    monkeypatch.setattr(replaying, "LIST_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ServerError, match="cannot be asked: timed out"):
            hub.verify_against(f"http://127.0.0.1:{silent.getsockname()[1]}", rows=2)


def test_nothing_right_is_a_loss_however_few_the_rows(hub: AdapterHub) -> None:
    with served(lambda asked: "green") as url:
        found = hub.verify_against(url, ["colours"], rows=1)
    assert (found[0].tasks["colours"].adapter, found[0].lost) in ((1.0, ["colours"]), (0.0, []))


def test_a_version_without_rows(hub: AdapterHub, tmp_path: Path) -> None:
    from loras import write_lora

    own = AdapterHub.open(shutil.copytree(hub.folder, tmp_path / "hub"), dtype="fp32")
    own.import_adapter(write_lora(tmp_path / "lora"), "bare", labels=("a", "b"))
    with served(right, ["bare"]) as url, pytest.raises(DataError, match="no row of bare@v1 is left to ask"):
        own.verify_against(url, ["bare"])
