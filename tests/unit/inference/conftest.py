"""A copy of a module's hub (`made`), and an engine on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from routed_hubs import copied

from adapterhub_cl import AdapterHub
from adapterhub_cl.inference.engine import Engine


@pytest.fixture
def hub(made: AdapterHub, tmp_path: Path) -> AdapterHub:
    """A copy that a test may change."""
    return copied(made, tmp_path / "hub")


@pytest.fixture
def engine(hub: AdapterHub) -> Iterator[Engine]:
    with hub.engine() as opened:
        yield opened
