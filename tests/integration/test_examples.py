"""The examples run as their first lines say, each in under two minutes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[0-9][0-9]_*.py"))


def test_the_examples_are_numbered_and_say_how_to_run_them() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02}" for number in range(1, 8)]
    for path in EXAMPLES:
        assert re.match(rf'"""[^\n]+\n(.*\n)*?\n?python examples/{path.name}', path.read_text(encoding="utf-8")), path


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.stem))
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(path.parents[1]), "TMPDIR": str(tmp_path)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(path)], cwd=path.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    print(f"{path.name}: {time.monotonic() - started:.0f} s")
    left = [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor_")]  # torch's own cache
    assert left == [], "it leaves files behind"
