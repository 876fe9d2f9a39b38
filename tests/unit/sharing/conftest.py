"""A key of its own for each test, and two hubs."""

from __future__ import annotations

from pathlib import Path

import pytest
from sharing_support import make_hub

from adapterhub_cl.registry import Registry


@pytest.fixture(autouse=True)
def _own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="sharing needs the extra `share`")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def ours(tmp_path: Path) -> Registry:
    return make_hub(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Registry:
    return make_hub(tmp_path / "theirs")
