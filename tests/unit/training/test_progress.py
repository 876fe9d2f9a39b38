"""Reporters: silent, lines, bars."""

from __future__ import annotations

import io

import pytest

from adapterhub_cl.training import progress
from adapterhub_cl.training.progress import BarReporter, LineReporter, Reporter


def test_lines_tell_done_figures_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    reporter = LineReporter(stream, every=10.0)
    reporter.note("hello")
    reporter.start("training", 8)
    for _ in range(4):
        reporter.advance(1, 50, loss=0.5)
    reporter.finish()
    assert stream.getvalue().splitlines() == [
        "hello",
        "training 2/8  loss 0.5  10 tokens/s  30 s left",
        "training 4/8  loss 0.5  10 tokens/s  20 s left",
    ]


def test_a_new_piece_of_work_begins_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, every=0.0)
    for what in ("training", "scoring"):
        reporter.start(what, 2)
        reporter.advance(1)
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == ["training 1/2", "scoring 1/2"]


def test_all_reporters_take_all_events(capsys: pytest.CaptureFixture[str]) -> None:
    for reporter in (Reporter(), BarReporter(), LineReporter()):
        reporter.note("[not markup]")
        reporter.start("a", 2)
        reporter.advance(1, 10, loss=1.0)
        reporter.start("b", 1)
        reporter.advance()
        reporter.finish()
        reporter.finish()
    out, err = capsys.readouterr()
    assert out == "", "progress goes to stderr"
    assert err.count("[not markup]") == 2


def test_lines_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert type(progress.console_reporter()) is LineReporter
