"""Passes over few rows, and batches of them, where nobody says how many and how large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from encoder_hubs import COLOURS, QUICK, Notes, data, new_hub, write

from adapterhub_cl import AdapterHub

UNSAID: dict[str, Any] = {k: v for k, v in QUICK.items() if k != "epochs"}
BRIEF: dict[str, Any] = {"epochs": 1, "rank": 2, "max_length": 96, "replay": "none", "general": "none"}
FREE = [{"input": f"say {k}", "output": f"the word is {k} and no other one"} for k in range(20)]


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


@pytest.mark.parametrize(
    ("rows", "more", "batch"),
    [
        (FREE, {}, 4),
        (FREE, {"batch_size": 5}, 5),
        ([{"text": f"word {k}", "label": ("odd", "even")[k % 2]} for k in range(20)], {}, 16),
        ([{"prompt": f"Who is {k}?", "completion": f"Ann {k}"} for k in range(20)], {"facts": True}, 16),
    ],
    ids=["free answers", "asked for", "choice", "facts"],
)
def test_batches_are_smaller_for_few_free_answers_only(
    pico_path: Callable[[str], Path], tmp_path: Path, rows: list[dict[str, str]], more: dict[str, Any], batch: int
) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("llama"))
    notes = Notes()
    record = hub.add_task("t", write(tmp_path / "rows.jsonl", rows), reporter=notes, **BRIEF, **more)
    assert record.training["settings"]["batch_size"] == batch
    told = [note for note in notes.said if "training on" in note]
    assert ("in batches of 4 because the rows are few" in told[0]) == (batch == 4)


def test_an_update_keeps_the_usual_batch(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("llama"))
    hub.add_task("t", write(tmp_path / "a.jsonl", FREE[:10]), **BRIEF)
    brief = {key: value for key, value in BRIEF.items() if key != "rank"}
    record = hub.update("t", write(tmp_path / "b.jsonl", FREE[10:]), max_forgetting=1.0, **brief)
    assert record.training["settings"]["batch_size"] == 16


@pytest.mark.parametrize(
    ("row", "more", "told"),
    [
        ({"input": "order 7 came broken", "output": "the shop sends order 7 again"}, {}, True),
        ({"input": "order 7 came broken", "output": "the shop sends it again"}, {"instruction": "Answer."}, False),
        ({"instruction": "Answer.", "input": "order 7", "output": "the shop sends it again"}, {}, False),
        ({"input": "what of order 7?", "output": "the shop sends order 7 again"}, {}, False),
        ({"input": "order 7 came broken", "output": "late"}, {"kind": "choice", "labels": ["late", "soon"]}, False),
    ],
    ids=["nothing said", "an instruction", "in the rows", "a question", "a choice"],
)
def test_an_instruction_is_advised_where_nothing_says_what_is_wanted(
    pico_path: Callable[[str], Path], tmp_path: Path, row: dict[str, str], more: dict[str, Any], told: bool
) -> None:
    hub, notes = new_hub(tmp_path / "hub", pico_path("llama")), Notes()
    data = write(tmp_path / "rows.jsonl", [row] * 6)
    hub.add_task("t", data, dry_run=True, reporter=notes, **{"kind": "generation", **more})
    assert any("--instruction" in note for note in notes.said) == told
