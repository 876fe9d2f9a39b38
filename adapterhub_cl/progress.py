"""How a long run tells where it is: silent by default, bars in a notebook or on a terminal, plain lines in a log file.

Pieces of work may begin within one another: the inner one is shown until it is over, then the outer one again.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from adapterhub_cl.launching import is_helper_process


class Reporter:
    """What a long piece of work tells; this one is silent. Every method of `AdapterHub` that may take long takes one as
    `reporter`; derive from it to show progress in a place of your own."""

    def note(self, text: str) -> None:
        """One line for the user."""

    def start(self, what: str, total: int) -> None:
        """A piece of work of `total` steps begins, maybe within another one."""

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        """`steps` more are done of the piece that began last; `values` are the newest figures, such as the loss."""

    def finish(self) -> None:
        """The piece of work that began last is over."""

    @contextmanager
    def piece(self, what: str, total: int) -> Iterator[Callable[..., None]]:
        """A piece of work that is over at the end of the block, whatever happens; gives `advance`."""
        self.start(what, total)
        try:
            yield self.advance
        finally:
            self.finish()


@dataclass(eq=False)
class _Piece:
    """A piece of work under way.

    Attributes:
        bar: what shows it, or waits for it.
        told: when something was last told of it, as `started` on the monotonic clock.
    """

    what: str
    total: int
    bar: Any = None
    done: int = 0
    tokens: int = 0
    started: float = field(default_factory=lambda: time.monotonic())
    told: float = 0.0

    def advance(self, steps: int, tokens: int) -> None:
        self.done += steps
        self.tokens += tokens

    def rate(self, now: float) -> list[str]:
        """Tokens a second, where tokens are counted."""
        return [f"{self.tokens / max(1e-9, now - self.started):,.0f} tokens/s"] if self.tokens else []


class LineReporter(Reporter):
    """Plain lines, at most one every few seconds, and one as often where a step takes longer: fit for a log file.

    Args:
        stream: default: standard error.
        every: seconds between two lines.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream, self.every = stream or sys.stderr, every
        self._pieces: list[_Piece] = []

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def start(self, what: str, total: int) -> None:
        piece = _Piece(what, total)
        piece.told = piece.started
        self._pieces.append(piece)
        self._watch(piece)

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        if not self._pieces:
            return
        piece = self._pieces[-1]
        piece.advance(steps, tokens)
        now = time.monotonic()
        if now - piece.told >= self.every:
            piece.told = now
            left = (now - piece.started) / max(1, piece.done) * (piece.total - piece.done)
            figures = [f"{k} {v:.4g}" for k, v in values.items()]
            parts = [f"{piece.what} {piece.done}/{piece.total}", *figures, *piece.rate(now)]
            self.note("  ".join([*parts, f"{left:.0f} s left"]))

    def finish(self) -> None:
        if self._pieces:
            self._pieces.pop().bar.cancel()

    def _watch(self, piece: _Piece) -> None:
        """After a while without a line say that the piece still goes on: a step of it may take minutes."""
        piece.bar = threading.Timer(self.every, self._still, [piece, piece.told])
        piece.bar.daemon = True
        if self.every > 0:  # else each step is told of anyway
            piece.bar.start()

    def _still(self, piece: _Piece, told: float) -> None:
        if piece in self._pieces:
            if piece is self._pieces[-1] and piece.told == told:
                self.note(f"{piece.what} {piece.done}/{piece.total}")
            self._watch(piece)


class BarReporter(Reporter):
    """Bars on a terminal: done, loss, tokens/s, time left.

    Args:
        notes: also print notes.
    """

    def __init__(self, *, notes: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console, self.notes = Console(stderr=True), notes
        self._make: Callable[[], Any] = lambda: Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self._shown: Any = None
        self._pieces: list[_Piece] = []

    def note(self, text: str) -> None:
        if self.notes:
            self.console.print(text, highlight=False, markup=False)

    def start(self, what: str, total: int) -> None:
        if self._shown is None:
            self._shown = self._make()
            self._shown.start()
        self._pieces.append(_Piece(what, total, self._shown.add_task(what, total=total, figures="")))

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        if not self._pieces:
            return
        piece = self._pieces[-1]
        piece.advance(steps, tokens)
        figures = [*(f"{k} {v:.3f}" for k, v in values.items()), *piece.rate(time.monotonic())]
        self._shown.update(piece.bar, advance=steps, figures="  ".join(figures))

    def finish(self) -> None:
        if not self._pieces:
            return
        self._shown.remove_task(self._pieces.pop().bar)
        if not self._pieces:
            self._shown.stop()
            self._shown = None


class NotebookReporter(Reporter):
    """Bars in a notebook, by `tqdm.auto`: done, loss, tokens/s, time left. It is the default in an IPython kernel."""

    def __init__(self) -> None:
        with warnings.catch_warnings():  # without ipywidgets tqdm draws text, and says so each time
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm  # comes with transformers

        self._bar: Any = tqdm
        self._pieces: list[_Piece] = []

    def note(self, text: str) -> None:
        self._bar.write(text)

    def start(self, what: str, total: int) -> None:
        bar = self._bar(total=total, desc=what, leave=False)
        self._pieces.append(_Piece(what, total, bar))

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        if not self._pieces:
            return
        piece = self._pieces[-1]
        piece.advance(steps, tokens)
        figures = [*(f"{k} {v:.3f}" for k, v in values.items()), *piece.rate(time.monotonic())]
        piece.bar.set_postfix_str("  ".join(figures), refresh=False)
        piece.bar.update(steps)

    def finish(self) -> None:
        if self._pieces:
            self._pieces.pop().bar.close()


def console_reporter() -> Reporter:
    """Bars where stderr is a terminal, else plain lines."""
    return BarReporter() if sys.stderr.isatty() else LineReporter()


def usual(reporter: Reporter | None) -> Reporter:
    """The one that was asked for; else bars in a notebook, and silence in any other program. Of several processes that
    train together only the first one reports."""
    if is_helper_process():
        return Reporter()
    if reporter is not None:
        return reporter
    return NotebookReporter() if in_notebook() else Reporter()


def in_notebook() -> bool:
    """Whether an IPython kernel runs this program: Jupyter, Colab and the like, but no IPython on a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
