"""A hub that several files of tests learn on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub_cl import AdapterHub

DEMO = Path(__file__).parents[2] / "adapterhub_cl/demo"


@pytest.fixture
def commands_hub(trained_hub: Callable[..., Path]) -> AdapterHub:
    """A hub on the unquantised base with one trained adapter, a new copy for each test: several of them change it."""

    def train(folder: Path) -> None:
        hub = AdapterHub.init(folder, "tiny", quantization="none", dtype="fp32")
        train, test = DEMO / "commands.train.jsonl", DEMO / "commands.test.jsonl"
        hub.add_task("commands", train, eval=test, epochs=4, rank=8, max_length=48, seed=1)

    return AdapterHub.open(trained_hub("commands-fp32", train), dtype="fp32")
