"""The reference is what the code says."""

from __future__ import annotations

import pytest
from docs_blocks import ROOT


def test_the_reference_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_reference  # type: ignore[import-not-found]

    assert make_reference.stale(write=False) == [], "out of date: python docs/make_reference.py"
