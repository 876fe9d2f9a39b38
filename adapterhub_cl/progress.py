"""How a long run reports progress: silent by default, bars in a notebook or on a terminal, plain lines in a log file.

Pieces of work may be nested: the inner one is shown until it is finished, then the outer one again.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from adapterhub_cl.launching import is_helper_process


class Reporter:
    """Reports the progress of a long piece of work; this class is silent. Every method of `AdapterHub` that may take
    long accepts one as `reporter`; derive from it to show progress elsewhere."""

    def note(self, text: str) -> None:
        """Show one line to the user."""

    def start(self, what: str, total: int) -> None:
        """A piece of work of `total` steps begins, possibly within another one."""

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        """`steps` more are done of the piece that began last; `values` are the latest figures, such as the loss."""

    def finish(self) -> None:
        """The piece of work that began last is finished."""

    @contextmanager
    def piece(self, what: str, total: int) -> Iterator[Callable[..., None]]:
        """A piece of work that is finished at the end of the block, whatever happens; yields `advance`."""
        self.start(what, total)
        try:
            yield self.advance
        finally:
            self.finish()


class Passing(Reporter):
    """Passes everything on to another reporter; derive from it to change a part.

    Args:
        inner: the other one.
    """

    def __init__(self, inner: Reporter) -> None:
        self.inner = inner

    def note(self, text: str) -> None:
        self.inner.note(text)

    def start(self, what: str, total: int) -> None:
        self.inner.start(what, total)

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        self.inner.advance(steps, tokens, **values)

    def finish(self) -> None:
        self.inner.finish()


class Noting(Passing):
    """Keeps the notes as well, in `notes`."""

    def __init__(self, inner: Reporter) -> None:
        super().__init__(inner)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text.strip())
        super().note(text)


@dataclass(eq=False)
class _Piece:
    """A piece of work in progress.

    Attributes:
        bar: the bar that shows it, now or once inner pieces are finished.
        told: when it was last reported, on the monotonic clock like `started`.
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

    def figures(self, values: Mapping[str, float]) -> str:
        """The latest figures of a bar: `loss 0.123  850 tokens/s`."""
        return "  ".join([*(f"{key} {value:.3f}" for key, value in values.items()), *self.rate(time.monotonic())])

    def rate(self, now: float) -> list[str]:
        """Tokens per second, if tokens are counted."""
        return [f"{self.tokens / max(1e-9, now - self.started):,.0f} tokens/s"] if self.tokens else []


def shown(text: str) -> str:
    """A note as a terminal may have it: a control character in a label or a file's name does nothing there."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


class LineReporter(Reporter):
    """Plain lines for a log file: at most one every few seconds, and at least one per interval if a step takes longer.

    Args:
        stream: by default standard error.
        every: seconds between two lines.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream, self.every = stream or sys.stderr, every
        self._pieces: list[_Piece] = []

    def note(self, text: str) -> None:
        print(shown(text), file=self.stream, flush=True)

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
        """After some time without a line, report that the piece is still running: one step may take minutes."""
        piece.bar = threading.Timer(self.every, self._still, [piece, piece.told])
        piece.bar.daemon = True
        if self.every > 0:  # otherwise each step is reported anyway
            piece.bar.start()

    def _still(self, piece: _Piece, told: float) -> None:
        if piece in self._pieces:
            if piece is self._pieces[-1] and piece.told == told:
                self.note(f"{piece.what} {piece.done}/{piece.total}")
            self._watch(piece)


class BarReporter(Reporter):
    """Bars on a terminal: done, loss, tokens/s, time left.

    Args:
        notes: whether to print notes too.
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
            self.console.print(shown(text), highlight=False, markup=False)

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
        self._shown.update(piece.bar, advance=steps, figures=piece.figures(values))

    def finish(self) -> None:
        if not self._pieces:
            return
        self._shown.remove_task(self._pieces.pop().bar)
        if not self._pieces:
            self._shown.stop()
            self._shown = None


class NotebookReporter(Reporter):
    """Bars in a notebook, by `tqdm.auto`: done, loss, tokens/s, time left. The default in an IPython kernel."""

    def __init__(self) -> None:
        with warnings.catch_warnings():  # without ipywidgets tqdm draws text, and warns each time
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm  # installed with transformers

        self._bar: Any = tqdm
        self._pieces: list[_Piece] = []

    def note(self, text: str) -> None:
        self._bar.write(shown(text))

    def start(self, what: str, total: int) -> None:
        bar = self._bar(total=total, desc=what, leave=False)
        self._pieces.append(_Piece(what, total, bar))

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        if not self._pieces:
            return
        piece = self._pieces[-1]
        piece.advance(steps, tokens)
        piece.bar.set_postfix_str(piece.figures(values), refresh=False)
        piece.bar.update(steps)

    def finish(self) -> None:
        if self._pieces:
            self._pieces.pop().bar.close()


def console_reporter() -> Reporter:
    """Bars if stderr is a terminal, otherwise plain lines."""
    return BarReporter() if sys.stderr.isatty() else LineReporter()


def usual(reporter: Reporter | None) -> Reporter:
    """The given one; otherwise bars in a notebook, and silence in any other program. Of several processes that train
    together, only the first one reports."""
    if is_helper_process():
        return Reporter()
    if reporter is not None:
        return reporter
    return NotebookReporter() if in_notebook() else Reporter()


def in_notebook() -> bool:
    """Whether an IPython kernel runs this program (Jupyter, Colab and so on); False for IPython on a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def by_share(pieces: int, examples: int, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """Tells of pieces of the work as the share of the examples that they are; None where nobody is told."""
    if progress is None:
        return None
    done = 0

    def told(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        progress(examples * done // pieces - examples * before // pieces)

    return told
