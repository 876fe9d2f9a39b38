"""What a call of `update` asks for where the user does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.learning.request import _usual_columns

TOLD = {"input": "body", "output": "team"}


@pytest.mark.parametrize(
    ("before", "row", "found"),
    [
        (TOLD, {"body": "a", "team": "b", "more": "c"}, TOLD),
        (TOLD, {"text": "a", "label": "b"}, {}),
        (TOLD, {"body": "a raw text"}, {}),
        ({}, {"body": "a", "team": "b"}, {}),
    ],
)
def test_an_update_reads_the_columns_of_the_version_before_where_they_are_there(
    before: dict[str, str], row: dict[str, Any], found: dict[str, str], tmp_path: Path
) -> None:
    data = tmp_path / "new.jsonl"
    data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    facts = [{"columns": before}]
    assert _usual_columns(facts, str(data)) == found
    assert _usual_columns([{}], str(data)) == {}
    assert _usual_columns(facts, "-") == {}, "a feed is read as it comes"
    lesson = {"columns": {"input": "input", "output": "output"}}
    assert _usual_columns([lesson, *facts], str(data)) == found, (
        "a version that was learned from production is no reason"
    )


def test_an_update_does_not_leave_out_judgements_that_are_new(tmp_path: Path) -> None:
    told = {"input": ["ask", "more"], "output": "reply"}
    data = tmp_path / "thumbs.jsonl"
    data.write_text(json.dumps({"ask": "q", "more": "r", "reply": "a", "thumb": "down"}) + "\n")
    before: list[dict[str, Any]] = [{"columns": told}]
    with pytest.raises(DataError, match="'thumb' may judge the answers") as said:
        _usual_columns(before, str(data))
    assert "--columns input=ask,input=more,output=reply,desirable=thumb;" in said.value.hint
    assert _usual_columns(before, str(data), free=False) == told
    before[0]["unused"] = ["thumb"]
    assert _usual_columns(before, str(data)) == told, "the user has left it out before"


def test_what_learns_from_written_answers_takes_no_raw_text(tmp_path: Path) -> None:
    hub = AdapterHub.init(tmp_path / "hub", base="tiny", quantization="none")
    text = tmp_path / "notes.txt"
    text.write_text("The river is long.\nThe house is old.\n")
    with pytest.raises(UsageError, match="is raw text, and --strategy sdft"):
        hub.add_task("notes", text, strategy="sdft")
    assert not hub.list()
