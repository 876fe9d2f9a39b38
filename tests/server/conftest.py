"""The reference hub behind a real socket, once for all tests of the server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from server_support import REFERENCE, Running, running

from adapterhub_cl import AdapterHub


@pytest.fixture(scope="session")
def routed_copy(trained_hub: Callable[..., Path]) -> Callable[[], Path]:
    """Gives the folder of a new copy of the reference hub, in which the router is fitted: a server that starts on a hub
    without one embeds all samples at its first question (test_serve_command.py does)."""

    def fit(folder: Path) -> None:
        AdapterHub.open(shutil.copytree(REFERENCE, folder)).predict(["they charged my card twice"])

    return lambda: trained_hub("routed-reference", fit)


@pytest.fixture(scope="session")
def served(routed_copy: Callable[[], Path]) -> Iterator[Running]:
    """A server for tests that leave the hub as it is."""
    with running(routed_copy()) as found:
        yield found


@pytest.fixture
def serving(routed_copy: Callable[[], Path], tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts a server of its own: `serving(max_tokens=8)`."""
    with ExitStack() as stack:

        def start(**options: Any) -> Running:
            folder = shutil.copytree(routed_copy(), tmp_path / "hub", dirs_exist_ok=True)
            return stack.enter_context(running(Path(folder), **options))

        yield start
