"""How often few rows are passed over where nobody says how often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from encoder_hubs import COLOURS, QUICK, data, new_hub

from adapterhub_cl import AdapterHub

UNSAID: dict[str, Any] = {k: v for k, v in QUICK.items() if k != "epochs"}


@pytest.mark.parametrize(("kind", "epochs"), [("bert", 12), ("llama", 6)])
def test_a_new_adapter_learns_few_rows_more_often_than_an_update(
    kind: str, epochs: int, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    hub = new_hub(tmp_path / "hub", pico_path(kind))
    rows = data(tmp_path, COLOURS, 16)
    plan = hub.add_task("colours", rows, kind="choice", dry_run=True, **UNSAID)
    record = hub.add_task("colours", rows, kind="choice", **UNSAID)
    assert record.training["settings"]["epochs"] == epochs
    assert record.training["steps"] == plan.steps == 2 * epochs
    updated = hub.update("colours", data(tmp_path, COLOURS, 16, 2), **UNSAID)
    assert updated.training["settings"]["epochs"] == 3


def test_free_answers_are_not_passed_over_more_often(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub: AdapterHub = new_hub(tmp_path / "hub", pico_path("llama"))
    record = hub.add_task("colours", data(tmp_path, COLOURS, 16), kind="generation", **UNSAID)
    assert record.training["settings"]["epochs"] == 3


def test_raw_text_is_not_passed_over_more_often(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub: AdapterHub = new_hub(tmp_path / "hub", pico_path("llama"))
    (tmp_path / "notes.txt").write_text("The harbour was closed in spring.\n\nThe ferry lands elsewhere.\n")
    record = hub.add_task("notes", tmp_path / "notes.txt", **UNSAID)
    assert record.training["settings"]["epochs"] == 3
