"""kill −9 at random moments of add-task: never a half version, and --resume ends where an uninterrupted run does."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from cl_adapter.__main__ import main

from adapterhub_cl import AdapterHub

DATA = Path(__file__).parents[2] / "adapterhub_cl/demo/tickets.train.jsonl"
FLAGS = ["--epochs", "2", "--max-length", "48", "--rank", "4", "--checkpoint-every", "1"]
ROWS = 24
RESULT = ("adapter_model.safetensors", "adapter_config.json", "replay.jsonl")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows: what matters is when the process dies, not what it learns."""
    path = tmp_path_factory.mktemp("data") / "tickets.jsonl"
    path.write_text("".join(DATA.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]), encoding="utf-8")
    return path


def command(hub: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cl_adapter", "--hub", str(hub), *arguments]


def run(hub: Path, *arguments: str) -> tuple[int, str, str]:
    """The exit code, output and errors of a command in this process: only what is killed needs one of its own."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["--hub", str(hub), *arguments])
    return code, out.getvalue(), err.getvalue()


def listed(hub: Path) -> list[str]:
    return [record.ref for record in AdapterHub.open(hub).list()]


def digest(hub: Path) -> list[str]:
    folder = hub / "adapters/tickets/v1"
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in RESULT]


def uninterrupted(folder: Path, data: Path) -> Path:
    hub = AdapterHub.init(folder / "whole", "tiny").folder
    code, _, err = run(hub, "add-task", "tickets", str(data), *FLAGS)
    assert code == 0, err
    return hub


def killed_after(hub: Path, data: Path, seconds: float) -> bool:
    """Start add-task and kill −9 it after that time; whether it was still running."""
    process = subprocess.Popen(
        command(hub, "add-task", "tickets", str(data), *FLAGS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def finish(hub: Path, data: Path) -> None:
    """What a user does after a crash: look, verify, resume (or start anew where nothing had begun), verify."""
    assert listed(hub) in ([], ["tickets@v1"])
    found = json.loads(run(hub, "verify", "--json")[1])
    unfinished = [p for p in found["problems"] if "unfinished run" in p["problem"]]
    assert all("--resume" in p["fix"] for p in unfinished)
    code, _, err = run(hub, "verify", "--repair")
    assert code in (0, 1), err
    if not listed(hub):
        arguments = ["--resume"] if unfinished else [str(data), *FLAGS]
        code, _, err = run(hub, "add-task", "tickets", *arguments)
        assert code == 0, err
    elif unfinished:
        code, _, err = run(hub, "add-task", "tickets", "--resume")
        assert code == 0, err
    assert listed(hub) == ["tickets@v1"]
    verified = json.loads(run(hub, "verify", "--json")[1])
    assert (verified["ok"], verified["problems"]) == (True, [])


@pytest.mark.slow
def test_five_random_kills_end_as_an_uninterrupted_run(tmp_path: Path, data: Path) -> None:
    whole = uninterrupted(tmp_path, data)
    started = time.monotonic()
    assert not killed_after(AdapterHub.init(tmp_path / "timed", "tiny").folder, data, 300)
    seconds = time.monotonic() - started
    generator = random.Random(11)
    moments = sorted(generator.uniform(0.15, 1.0) for _ in range(5))
    for number, moment in enumerate(moments):
        hub = AdapterHub.init(tmp_path / f"killed{number}", "tiny").folder
        killed_after(hub, data, moment * seconds)
        finish(hub, data)
        assert digest(hub) == digest(whole), f"killed after {moment:.0%}"


@pytest.mark.integration
def test_a_kill_in_the_middle_of_training_resumes_to_the_same_adapter(tmp_path: Path, data: Path) -> None:
    whole = uninterrupted(tmp_path, data)
    hub = AdapterHub.init(tmp_path / "killed", "tiny").folder
    process = subprocess.Popen(
        command(hub, "add-task", "tickets", str(data), *FLAGS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(hub.glob("runs/*/checkpoint.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert listed(hub) == []
    finish(hub, data)
    assert digest(hub) == digest(whole)
