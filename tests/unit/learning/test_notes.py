"""What a new task's user is told of the rows that were read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl import AdapterHub

ADVICE = '--instruction "WHAT IS WANTED"'
SCORED = "the score is of the last one of each conversation"
CHOICE = [{"text": f"{word} number {k}", "label": word} for k in range(4) for word in ("sun", "sea")]
FREE = [{"prompt": f"thing {k}", "completion": f"answer {k}"} for k in range(8)]
ASKED = [{"prompt": f"which is thing {k}?", "completion": f"answer {k}"} for k in range(8)]
TALKS = [
    {
        "messages": [
            {"role": role, "content": f"{text} {k}"}
            for role, text in (("user", "hi"), ("assistant", "yes"), ("user", "and"), ("assistant", "so"))
        ]
    }
    for k in range(8)
]


@pytest.fixture(scope="module")
def hub(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    folder = tmp_path_factory.mktemp("notes") / "hub"
    return AdapterHub.init(folder, str(pico_path("llama")), quantization="none", dtype="fp32", device="cpu")


@pytest.mark.parametrize(
    ("rows", "asked", "advised", "scored"),
    [
        (CHOICE, {}, False, False),
        (CHOICE, {"instruction": "Sun or sea?"}, False, False),
        (FREE, {}, True, False),
        (ASKED, {}, False, False),
        (TALKS, {}, False, True),
        (TALKS, {"learn": "last"}, False, False),
    ],
)
def test_the_notes_of_a_new_task(
    hub: AdapterHub, tmp_path: Path, rows: list[Any], asked: dict[str, Any], advised: bool, scored: bool
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    notes = "\n".join(hub.add_task("t", data, dry_run=True, rank=2, max_length=64, **asked).notes)
    assert (ADVICE in notes, SCORED in notes) == (advised, scored)


def test_a_plan_keeps_the_notes_about_rows_that_are_cut(hub: AdapterHub, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "word " * 90 + str(k), "completion": f"answer {k}"} for k in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plan = hub.add_task("t", data, dry_run=True, rank=2, max_length=48)
    assert plan.truncated == 8
    assert [note for note in plan.notes if "examples are longer than 48 tokens" in note]
