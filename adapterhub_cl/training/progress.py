"""How a long run tells where it is: silent by default, bars on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Reporter:
    """Receives a run's events; this one is silent."""

    def note(self, text: str) -> None:
        """One line for the user."""

    def start(self, what: str, total: int) -> None:
        """A piece of work of `total` steps begins."""

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        """`steps` more are done; `values` are the newest figures, such as the loss."""

    def finish(self) -> None:
        """The piece of work is over."""

    @contextmanager
    def piece(self, what: str, total: int) -> Iterator[Callable[..., None]]:
        """A piece of work that is over at the end of the block, whatever happens; gives `advance`."""
        self.start(what, total)
        try:
            yield self.advance
        finally:
            self.finish()


class LineReporter(Reporter):
    """Plain lines, at most one every few seconds: fit for a log file."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream, self.every = stream or sys.stderr, every
        self.what, self.total, self.done, self.tokens = "", 0, 0, 0
        self.started = self.told = 0.0

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def start(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.tokens = what, total, 0, 0
        self.started = self.told = time.monotonic()

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        self.done += steps
        self.tokens += tokens
        now = time.monotonic()
        if now - self.told >= self.every:
            self.told = now
            left = (now - self.started) / max(1, self.done) * (self.total - self.done)
            parts = [f"{self.what} {self.done}/{self.total}", *(f"{k} {v:.4g}" for k, v in values.items())]
            if self.tokens:
                parts.append(f"{self.tokens / (now - self.started):,.0f} tokens/s")
            self.note("  ".join([*parts, f"{left:.0f} s left"]))


class BarReporter(Reporter):
    """A bar on a terminal: done, loss, tokens/s, time left.

    Args:
        notes: also print notes.
    """

    def __init__(self, *, notes: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console, self.notes = Console(stderr=True), notes
        self._make: Callable[[], Any] = lambda: Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self.bar: Any = None
        self.task: Any = None
        self.tokens, self.started = 0, 0.0

    def note(self, text: str) -> None:
        if self.notes:
            self.console.print(text, highlight=False, markup=False)

    def start(self, what: str, total: int) -> None:
        self.finish()
        self.bar = self._make()
        self.task = self.bar.add_task(what, total=total, figures="")
        self.tokens, self.started = 0, time.monotonic()
        self.bar.start()

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        self.tokens += tokens
        parts = [f"{k} {v:.3f}" for k, v in values.items()]
        if self.tokens:
            parts.append(f"{self.tokens / max(1e-9, time.monotonic() - self.started):,.0f} tokens/s")
        self.bar.update(self.task, advance=steps, figures="  ".join(parts))

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def console_reporter() -> Reporter:
    """Bars where stderr is a terminal, else plain lines."""
    return BarReporter() if sys.stderr.isatty() else LineReporter()
