"""The reference hub behind a real socket, once for all tests of the server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from server_support import REFERENCE, Running, running


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for tests that leave the hub as it is."""
    folder = shutil.copytree(REFERENCE, tmp_path_factory.mktemp("served") / "hub")
    with running(folder) as found:
        yield found


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts a server of its own: `serving(max_tokens=8)`."""
    with ExitStack() as stack:

        def start(**options: Any) -> Running:
            folder = shutil.copytree(REFERENCE, tmp_path / "hub", dirs_exist_ok=True)
            return stack.enter_context(running(Path(folder), **options))

        yield start
