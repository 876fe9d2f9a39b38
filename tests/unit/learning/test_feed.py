"""What a feed has received, read again."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from adapterhub_cl.learning.feed import RECEIVED, Feed
from adapterhub_cl.progress import Reporter


def test_a_carriage_return_inside_a_line_does_not_count_as_a_line(tmp_path: Path) -> None:
    lines = [b'{"text": "a", "label": "x"}\n', b'{"text": "b",\r "label": "y"}\n', b'{"text": "c", "label": "x"}\r\n']
    (tmp_path / RECEIVED).write_bytes(b"".join(lines) + b'{"text": "torn')
    stub: Any = None  # neither the request nor the hub is asked before a line is read

    def again(start: int) -> list[bytes]:
        return Feed(tmp_path, start, io.StringIO(""), stub, stub, Reporter(), lambda: True).waiting

    assert again(0) == lines
    assert again(2) == lines[2:]
    assert again(3) == []
