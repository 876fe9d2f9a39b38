"""`cl-adapter serve` as a process: it says where it answers, finishes what runs at SIGTERM, and ends with 0."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx2
from server_support import REFERENCE


def test_serve_from_start_to_sigterm(tmp_path: Path) -> None:
    hub = shutil.copytree(REFERENCE, tmp_path / "hub")
    command = [sys.executable, "-m", "cl_adapter", "--hub", str(hub), "--json", "serve", "--port", "0"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            url = json.loads(_object(process))["url"]
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with suppress(httpx2.TransportError):
                    if httpx2.get(f"{url}/health/ready").status_code == 200:
                        break
                time.sleep(0.05)  # the server needs the processor more
            found: list[httpx2.Response] = []
            body = {"model": "base", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 96}

            def ask() -> None:
                found.append(httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60))

            asking = threading.Thread(target=ask)
            asking.start()
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            asking.join(60)
            assert process.wait(60) == 0
            assert [answer.status_code for answer in found] == [200]
            told = process.stderr.read() if process.stderr else ""
            assert '"route": "/v1/chat/completions", "status": 200' in told
            assert "Traceback" not in told
        finally:
            process.kill()


def _object(process: subprocess.Popen[str]) -> str:
    """The first JSON object on stdout."""
    text = ""
    assert process.stdout is not None
    while "}" not in text:
        line = process.stdout.readline()
        assert line, "the server ended before it said where it is"
        text += line
    return text
