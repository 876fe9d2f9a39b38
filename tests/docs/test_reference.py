"""The reference is what the code says."""

from __future__ import annotations

import subprocess
import sys

from docs_blocks import ROOT


def test_the_reference_is_what_the_code_says() -> None:
    command = [sys.executable, str(ROOT / "docs/make_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
