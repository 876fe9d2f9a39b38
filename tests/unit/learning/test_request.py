"""What a call of `update` asks for where the user does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
    manifest = {"training": {"data": {"columns": before}}}
    assert _usual_columns(manifest, str(data)) == found
    assert _usual_columns({"training": None}, str(data)) == {}
    assert _usual_columns(manifest, "-") == {}, "a feed is read as it comes"
