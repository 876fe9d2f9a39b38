"""Reporters: silent, lines, bars."""

from __future__ import annotations

import io
import sys
import time
from types import SimpleNamespace

import pytest

from adapterhub_cl import progress
from adapterhub_cl.progress import BarReporter, LineReporter, NotebookReporter, Reporter, usual


def test_lines_tell_done_figures_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0])
    # Only the module's own clock: other threads may look at the system's.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
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


def test_the_outer_piece_goes_on_where_an_inner_one_ends() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, every=0.0)
    with reporter.piece("training", 10) as outer:
        outer(4)
        with reporter.piece("rows held out", 2) as inner:
            inner(2)
        outer(1)
    reporter.advance(1)
    told = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert told == ["training 4/10", "rows held out 2/2", "training 5/10"]


def test_a_step_that_takes_long_is_no_silence() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, every=0.05)
    with reporter.piece("measuring", 40):
        while stream.getvalue().count("\n") < 2:
            time.sleep(0.01)
        with reporter.piece("answering", 3):
            while "answering" not in stream.getvalue():
                time.sleep(0.01)
    said = stream.getvalue()
    assert said.startswith("measuring 0/40\nmeasuring 0/40\n")
    time.sleep(0.2)
    assert stream.getvalue() == said, "and what is over is told of no more"


def test_a_bar_is_on_the_terminal_until_its_piece_is_over() -> None:
    reporter = BarReporter()
    with reporter.piece("[b]training", 10) as outer:
        outer(3, loss=0.5)
        with reporter.piece("rows held out", 2):
            assert [(t.description, t.completed) for t in reporter._shown.tasks] == [
                ("[b]training", 3),
                ("rows held out", 0),
            ]
        assert [t.description for t in reporter._shown.tasks] == ["[b]training"]
    assert reporter._shown is None
    with pytest.raises(ValueError, match="broken"), reporter.piece("training", 10):
        raise ValueError("broken")
    assert reporter._shown is None


class Kernel:
    """What IPython says of itself in a notebook (`kernel`), or on a terminal."""

    def __init__(self, kernel: object) -> None:
        self.kernel = kernel

    def get_ipython(self) -> Kernel:
        return self


def test_in_a_notebook_bars_are_usual_and_elsewhere_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert type(usual(None)) is Reporter
    monkeypatch.setitem(sys.modules, "IPython", Kernel(None))
    assert type(usual(None)) is Reporter
    monkeypatch.setitem(sys.modules, "IPython", Kernel(object()))
    assert type(usual(None)) is NotebookReporter
    asked = LineReporter()
    assert usual(asked) is asked


def test_bars_of_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = NotebookReporter()
    with reporter.piece("training", 4) as advance:
        advance(2, 100, loss=0.25)
        reporter._pieces[-1].bar.refresh()
        bar = reporter._pieces[-1].bar
        assert (bar.n, bar.total, bar.desc) == (2, 4, "training")
        with reporter.piece("rows held out", 1) as inner:
            inner()
        assert len(reporter._pieces) == 1
    assert bar.disable, "closed"
    assert "loss 0.250" in capsys.readouterr().err


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


def test_a_note_cannot_steer_the_terminal() -> None:
    stream = io.StringIO()
    LineReporter(stream).note("labels (\x1b[2Jred\x07, grün)\n  because 日本語")
    assert (
        stream.getvalue()
        == "labels (\N{REPLACEMENT CHARACTER}[2Jred\N{REPLACEMENT CHARACTER}, grün)\n  because 日本語\n"
    )
