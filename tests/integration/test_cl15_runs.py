"""The stream benchmark from end to end: a few rows of the real texts, on a pico encoder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pico import write_encoder

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
METHODS = ("ours", "sequential", "replay 5%", "merged", "distilled", "multitask", "zero-shot")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
def test_every_kind_of_method_is_taught_measured_and_shown(tmp_path: Path) -> None:
    def cl15(*words: str) -> str:
        command = [sys.executable, str(ROOT / "examples/benchmarks/cl15"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stderr
        return done.stdout

    write_encoder(str(tmp_path / "base"))
    asked = [
        "--smoke",
        "--orders",
        "1",
        "--seeds",
        "0",
        "--methods",
        ",".join(METHODS),
        "--work",
        str(tmp_path / "work"),
    ]
    first = cl15("run", "--base", str(tmp_path / "base"), *asked)
    assert first.count(": AP ") == len(METHODS)
    assert cl15("run", "--base", str(tmp_path / "base"), *asked) == f"{len(METHODS)} of {len(METHODS)} runs are done\n"
    cl15("table", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "out"))
    runs = {row["method"]: row for row in json.loads((tmp_path / "out/cl15.json").read_text())["runs"]}
    assert set(runs) == set(METHODS)
    assert [len(row) for row in runs["ours"]["matrix"]] == [4, 4, 4, 4]
    assert runs["ours"]["routing"]["whole"] > 0.25, "better than chance, on an encoder that knows nothing"
    assert 0 <= runs["distilled"]["average_accuracy"] <= 1
    page = (tmp_path / "out/cl15.md").read_text()
    assert all(f"| {method} |" in page for method in METHODS)
