"""What torch's helpers do when another thread is to compute; in a process of its own, whose helpers are counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import os, threading, torch
from adapterhub_cl.bases.compute_threads import let_go_of_threads
def helpers():
    return len(os.listdir("/proc/self/task")) - before
before = len(os.listdir("/proc/self/task"))
print(let_go_of_threads(), helpers())
for _ in range(2):
    torch.ones(2_000_000).add_(1)
    print(helpers())
    print(let_go_of_threads(), helpers())
assert float(torch.ones(2_000_000).sum()) == 2_000_000
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by Linux")
def test_helpers_go_and_come_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=True, timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["True 0", "1", "True 0", "1", "True 0"]


def test_where_there_is_no_gnu_openmp_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.bases import compute_threads

    def missing(*_: object, **__: object) -> object:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(compute_threads.ctypes, "CDLL", missing)
    assert not compute_threads.let_go_of_threads()
