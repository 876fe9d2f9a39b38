"""Tables, ages, sizes."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime

import pytest
from cl_adapter import display
from cl_adapter.verbs_stream import show_matrix

from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.types import Evaluation

STEERS = "a\x1b[31mb\u009b31mc\u202ed\u200fe\rf\u2066g\x7f"
KEPT = "naïve 日本\tx\n  y 👩\u200d👧 می\u200cخواهم"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (2_000_000, "2.0 MB"), (3 * 10**15, "3000.0 TB")]
)
def test_size(count: int, shown: str) -> None:
    assert display.size(count) == shown


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        ("2026-03-01T11:59:30+00:00", "30 s"),
        ("2026-03-01T11:30:00", "30 min"),
        ("2026-03-01T02:00:00+00:00", "10 h"),
        ("2026-02-01T12:00:00+00:00", "28 d"),
        ("2027-01-01T00:00:00+00:00", "0 s"),
        ("long ago", "long ago"),
    ],
)
def test_age(at: str, shown: str) -> None:
    assert display.age(at, NOW) == shown


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["a", "b\nc"], "a, b c"),
        (["x" * 5000], "x" * 59 + "…"),
        ([str(k) for k in range(30)], ", ".join(map(str, range(20))) + ", … (30 in all)"),
        ([], ""),
    ],
)
def test_many_or_long_names_are_cut_short(names: list[str], shown: str) -> None:
    assert display.some(names) == shown


def test_a_table_in_a_pipe_is_aligned_text_and_wraps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a" * 300 + "@v1"
    display.table(("ref", "n"), [(long, 5), ("日本", None), ("b", 12)], right=("n",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [long, "5"]
    assert [display.width(line) for line in lines] == [307] * 4
    assert lines[2].endswith(" -")


class Terminal:
    """stdout that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [100, 20])
def test_a_table_on_a_terminal_fits_it(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    for name, value in {"COLUMNS": columns, "LINES": 30, "TERM": "xterm", "NO_COLOR": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "stdout", terminal)
    display.table(("ref", "text"), [("news@v1", "a text that is rather long")])
    assert "─" in terminal.text
    assert "news@v1" in terminal.text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.text)
    assert all(len(line) <= columns for line in plain.splitlines())
    assert plain.split()[-6:] == ["a", "text", "that", "is", "rather", "long"]  # wrapped, not cut
    assert "\x1b[3" not in terminal.text  # NO_COLOR: bold perhaps, colour never


def test_data_cannot_break_the_terminal() -> None:
    assert display.one_line("a\x1b[31mb\nc\td\x07") == "a�[31mb c d�"


def test_a_score_is_shown_with_its_interval() -> None:
    assert display.score_line(Evaluation("t", "accuracy", 0.5, 10, details={"interval": [0.2, 0.8]})) == (
        "accuracy 0.5000 (95 % 0.200–0.800, n 10)"
    )
    assert display.score_line(Evaluation("t", "perplexity", 23.456, 3)) == "perplexity 23.46 (n 3)"


def test_retention_is_no_ratio_to_next_to_nothing() -> None:
    def shown(before: float) -> str:
        told = {"of": "exact_match", "before": before, "after": 0.9375}
        return display.score_line(Evaluation("facts", "retention", 0.9375 / before, 80, "x", told))

    assert shown(0.05) == "retention: exact_match 0.0500 → 0.9375 (n 80)"
    assert shown(0.5) == "retention 1.8750 (exact_match 0.5000 → 0.9375, n 80)"


def test_a_matrix_without_an_average_says_what_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    show_matrix(AccuracyMatrix(("news", "mood"), ((0.9, None), (None, 0.8))))
    assert "no AP: after mood, not measured on news\n" in capsys.readouterr().out
    show_matrix(AccuracyMatrix(("news", "mood"), ((0.9, None), (0.85, 0.8))))
    said = capsys.readouterr().out
    assert "AP 0.825" in said
    assert "no AP" not in said


def test_what_a_model_writes_cannot_steer_a_terminal() -> None:
    assert display.as_written(STEERS) == "a�[31mb�31mc�d�e�f�g�"
    assert display.as_written(KEPT) == KEPT


@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_cannot_steer_a_terminal_and_keeps_its_texts(ascii_only: bool) -> None:
    data = {"text": [STEERS, KEPT], STEERS: 1}
    text = display.as_json(data, indent=2, ascii_only=ascii_only)
    assert json.loads(text) == data
    assert display.as_written(text) == text
    assert ("日本" in text) != ascii_only


def test_json_has_no_numbers_that_json_lacks() -> None:
    text = display.as_json({"scores": (float("-inf"), [float("nan"), 0.5]), "n": 3})
    assert json.loads(text, parse_constant=pytest.fail) == {"scores": [None, [None, 0.5]], "n": 3}
