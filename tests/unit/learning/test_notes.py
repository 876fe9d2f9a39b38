"""What a new task's user is told of the rows that were read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from encoder_hubs import ANIMALS, COLOURS, Notes, data, new_hub, teach

from adapterhub_cl import AdapterHub

ADVICE = '--instruction "WHAT IS WANTED"'
SCORED = "the score is of the last one of each conversation"
CHOICE = [{"text": f"{word} number {k}", "label": word} for k in range(4) for word in ("sun", "sea")]
FREE = [{"prompt": f"thing {k}", "completion": f"answer {k}"} for k in range(8)]
ASKED = [{"prompt": f"which is thing {k}?", "completion": f"answer {k}"} for k in range(8)]
OBJECTS = [{"prompt": f"thing {k}", "completion": {"name": f"n{k}", "size": k}} for k in range(8)]
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
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    notes = "\n".join(hub.add_task("t", source, dry_run=True, rank=2, max_length=64, **asked).notes)
    assert (ADVICE in notes, SCORED in notes) == (advised, scored)


def test_json_is_asked_for_and_the_user_is_told(hub: AdapterHub, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in OBJECTS), encoding="utf-8")
    plan = hub.add_task("t", source, dry_run=True, rank=2, max_length=96)
    asked, told = "Answer with a JSON object that has the keys name and size.", "\n".join(plan.notes)
    assert asked in told
    assert '--instruction "" leaves it out' in told
    assert ADVICE not in told
    plan = hub.add_task("t", source, dry_run=True, rank=2, max_length=96, instruction="")
    assert asked not in "\n".join(plan.notes)
    assert ADVICE in "\n".join(plan.notes)


def test_a_key_that_an_update_brings_is_told(hub: AdapterHub, tmp_path: Path) -> None:
    def notes(name: str, **more: str) -> list[str]:
        rows = [{**row, "completion": {**row["completion"], **more}} for row in OBJECTS]
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        told = Notes()
        (hub.update if hub.list() else hub.add_task)("t", source, epochs=1, max_length=160, reporter=told)
        return [note for note in told.said if "does not ask for" in note]

    assert notes("first") == notes("same") == []
    assert notes("more", colour="red") == [
        "note: t does not ask for colour, which the new answers have; to ask for all keys, teach the old and the new "
        "rows together as a new task"
    ]


def test_a_plan_keeps_the_notes_about_rows_that_are_cut(hub: AdapterHub, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [{"prompt": "word " * 90 + str(k), "completion": f"answer {k}"} for k in range(8)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plan = hub.add_task("t", source, dry_run=True, rank=2, max_length=48)
    assert plan.truncated == 8
    assert [note for note in plan.notes if "examples are longer than 48 tokens" in note]


def test_kin_is_proposed_where_tasks_have_the_same_labels(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert"))
    teach(hub, tmp_path, "colours", COLOURS, epochs=1)

    def proposed(name: str, labels: Sequence[str], **asked: Any) -> list[str]:
        told = hub.add_task(name, data(tmp_path, labels, 24, 2), dry_run=True, **asked).notes
        return [note for note in told if "--strategy kin" in note]

    assert proposed("paints", [label.title() for label in COLOURS]) == [
        "note: colours has the same labels; with --strategy kin, paints begins from what is known of it, if that does "
        "better than a fresh adapter"
    ]
    assert not proposed("colours", COLOURS), "it is the same task"
    assert not proposed("animals", ANIMALS)
    assert not proposed("paints", COLOURS[:2])
    assert not proposed("paints", COLOURS, strategy="kin")
