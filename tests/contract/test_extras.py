"""Each extra installs by itself beside the default packages, brings what its verbs need, and nothing else does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOR_DEVELOPERS = "dev"
# A command that ends with a hint to install the extra, and what it prints once the extra is there.
PROBES = {
    "gguf": (["export", "tickets", "--format", "gguf-lora", "-o", "out"], "out"),
    "share": (["push", "tickets@v1", "store"], "tickets@v1"),
    "s3": (["push", "tickets@v1", "s3://no-such-bucket-of-anyone/x"], "s3://no-such-bucket-of-anyone/x"),
    "postgres": (["init", "other", "--base", "tiny", "--index", "postgresql://a@127.0.0.1:9/x"], "Connection refused"),
    "tune": (["tune", "tickets", "rows.jsonl", "--trials", "2", "--minutes", "0.01"], "tickets"),
    "ray": (["stream", "tasks.yaml", "--on", "ray"], "127.0.0.1:9"),
    "serve": (["serve", "--port", "PORT"], "in use"),
}


def extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"]) - {FOR_DEVELOPERS}


def test_every_extra_has_a_probe() -> None:
    assert set(PROBES) == extras()


def pip(python: Path, *words: str) -> str:
    return run([str(python), "-m", "pip", "--disable-pip-version-check", *words])


def run(words: list[str], folder: Path | None = None) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    kept["RAY_ADDRESS"] = "127.0.0.1:9"  # nobody is there
    done = subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True, timeout=1200, check=False)
    return done.stdout + done.stderr


def environment(folder: Path, beside: Path | None = None) -> Path:
    """A fresh virtual environment, perhaps with the packages of another one: its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if beside is not None:
        lib = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (folder / lib / "beside.pth").write_text(f"{beside / lib}\n", encoding="utf-8")
    return python


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with what `pip install .` brings."""
    folder = tmp_path_factory.mktemp("default")
    python = environment(folder)
    told = pip(python, "install", "--quiet", "-c", str(ROOT / "constraints.txt"), "torch")
    if "No matching distribution" in told or "Could not fetch" in told:
        pytest.skip("no package index can be reached")
    pip(python, "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(ROOT))
    assert "adapterhub-cl" in pip(python, "list")
    return folder


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port that something else has."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest.mark.slow
def test_the_default_install_has_nothing_of_the_extras(default: Path) -> None:
    there = {line.split()[0].lower() for line in pip(default / "bin" / "python", "list").splitlines() if line.strip()}
    for package in ("gguf", "cryptography", "s3fs", "psycopg", "optuna", "fastapi", "uvicorn", "ray", "openai"):
        assert package not in there


@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(PROBES))
def test_an_extra_installs_by_itself(default: Path, tmp_path: Path, taken: socket.socket, extra: str) -> None:
    python = environment(tmp_path / "env", default)
    words, after = PROBES[extra]
    shutil.copytree(ROOT / "registry", tmp_path / "hub")
    (tmp_path / "rows.jsonl").write_text('{"text": "a b", "label": "billing"}\n' * 3, encoding="utf-8")
    tasks = "tasks:\n  - {name: one, data: rows.jsonl}\n  - {name: two, data: rows.jsonl}\n"
    (tmp_path / "tasks.yaml").write_text(tasks, encoding="utf-8")
    where = [] if words[0] == "init" else ["--hub", "hub"]
    taken.listen()
    port = str(taken.getsockname()[1])
    command = [str(python), "-m", "cl_adapter", *where, *(port if word == "PORT" else word for word in words)]
    before = run(command, tmp_path)
    assert f"adapterhub-cl[{extra}]" in before, before
    told = pip(python, "install", "--quiet", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[{extra}]")
    assert "ERROR" not in told, told
    found = run(command, tmp_path)
    assert f"adapterhub-cl[{extra}]" not in found, found
    assert after in found
    assert "Traceback" not in found
