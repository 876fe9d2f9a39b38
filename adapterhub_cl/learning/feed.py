"""A feed of JSON lines, written down as it is read, so that nothing that came in is lost.

`received.jsonl` holds what was read, byte for byte; `batches.jsonl` how many of its lines each batch reached to,
written before the batch is learned. Both together replay a run exactly.
"""

from __future__ import annotations

import io
import json
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from adapterhub_cl import objectives
from adapterhub_cl.data.columns import Examples, examples
from adapterhub_cl.data.label_forms import for_task
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.data.tasks import check_answers, updated_task
from adapterhub_cl.errors import AdapterHubError, DataError
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.types import Example, Layout

RECEIVED, BATCHES = "received.jsonl", "batches.jsonl"
PAUSE = 2.0  # seconds without a row after which a batch that is not full is learned
AHEAD = 10_000  # lines that are read ahead of what is learned
CHUNK = 65_536


class Feed:
    """Examples from lines that come in; a line that cannot be used is reported and skipped.

    Args:
        folder: the run's.
        start: how many lines are learned already.
        lines: where further lines come from.
        stopped: whether the user wants to end.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        lines: TextIO,
        request: TrainRequest,
        registry: Registry,
        reporter: Reporter,
        stopped: Callable[[], bool],
    ) -> None:
        self.received, self.boundaries = folder / RECEIVED, folder / BATCHES
        self.request, self.registry, self.reporter, self.stopped = request, registry, reporter, stopped
        self.raw: bool | None = None  # whether rows are raw text; the first one decides
        self.labels: set[str] | None = None
        self.at = start
        known = self._known()
        self.waiting = known[start:]
        self.ends = [end for end in self._ends() if start < end <= len(known)]
        self.lines: queue.Queue[bytes | None] = queue.Queue(maxsize=AHEAD)
        self.ended = False
        self.trouble = ""
        self.respelled: set[tuple[str | None, str | None]] = set()
        threading.Thread(target=self._pump, args=(_reader(lines),), daemon=True).start()

    def _known(self) -> list[bytes]:
        """The whole lines that were received before; a torn last one is cut off."""
        if not self.received.exists():
            return []
        data = self.received.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.received, whole)
        return [line + b"\n" for line in data[:whole].split(b"\n")[:-1]]  # as `_pump` counts them

    def _ends(self) -> list[int]:
        found = []
        if self.boundaries.exists():
            for line in self.boundaries.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n") and line.strip().isdigit():
                    found.append(int(line))
        return found

    def _pump(self, read: Callable[[], bytes]) -> None:
        rest = b""
        try:
            with open(self.received, "ab", buffering=0) as file:
                while chunk := read():
                    file.write(chunk)
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        self.lines.put(line + b"\n")
                if rest:
                    file.write(b"\n")
                    self.lines.put(rest + b"\n")
        except (OSError, ValueError) as error:
            self.trouble = f"reading stopped: {error}"
        self.lines.put(None)

    def batch(self, size: int) -> tuple[list[Example], bool]:
        """Up to `size` examples, fewer after a pause; and whether that was all.

        Raises:
            StorageError: the disk refused; nothing of the batch was learned.
        """
        found: list[Example] = []
        end, ended = self.at, False
        recorded = self.ends.pop(0) if self.ends else None
        while (end < recorded) if recorded else (len(found) < size):
            line = self._line(bool(found))
            if line is None:
                ended = self.ended or self.stopped()
                break
            end += 1
            example = self._example(line, end)
            if example is not None:
                found.append(example)
            if self.stopped() and not recorded:
                ended = True
                break
        if end > self.at and not recorded:
            with storage_errors(self.boundaries):
                for path, text in ((self.received, b""), (self.boundaries, b"%d\n" % end)):
                    with open(path, "ab", buffering=0) as file:
                        file.write(text)
                        os.fsync(file.fileno())
        self.at = end
        return found, ended or self.stopped()

    def _line(self, begun: bool) -> bytes | None:
        """The next line; None at the end of input, after a pause once a batch is begun, or when asked to stop."""
        if self.waiting:
            return self.waiting.pop(0)
        waited = 0.0
        while not self.ended:
            try:
                line = self.lines.get(timeout=0.2)
            except queue.Empty:
                waited += 0.2
                if self.stopped() or (begun and waited >= PAUSE):
                    return None
                continue
            if line is None:
                self.ended = True
                if self.trouble:
                    self.reporter.note(f"warning: {self.trouble}")
                return None
            return line
        return None

    @property
    def left(self) -> int:
        """Lines that came in and were not handed out."""
        return max(0, len(self._known()) - self.at)

    def _example(self, line: bytes, number: int) -> Example | None:
        if not line.strip():
            return None
        try:
            row: Any = json.loads(line)
            if not isinstance(row, dict):
                raise DataError("not a JSON object")
            rows = SourceRows([row], "standard input", "", [number])
            found = examples(rows, dict(self.request.columns) or None, self.request.instruction or "", self._layout())
            if found.read.prefers:
                raise DataError("a preference, which update learns without --online only")
            raw = found.layout == "raw text"
            self.raw = raw if self.raw is None else self.raw
            if raw != self.raw:
                raise DataError("raw text among examples with answers" if raw else "an answer among raw texts")
            if not raw:
                found = self._checked(found)
            return found.examples[0]
        except (AdapterHubError, ValueError, RecursionError) as error:
            told = error.message if isinstance(error, AdapterHubError) else f"not JSON ({error})"
            self.reporter.note(f"warning: line {number} is skipped: {told}")
            return None

    def _layout(self) -> Layout | None:
        """The columns that the task's data had so far."""
        return self.registry.task(self.registry.get(self.request.name).task).layout

    def _checked(self, found: Examples) -> Examples:
        """A row whose answer is one of the task's labels, or a new one.

        Raises:
            DataError: it cannot be.
        """
        task = self.registry.task(self.registry.get(self.request.name).task)
        before, found = found, for_task(task, found)
        if found.examples != before.examples:
            pair = (before.examples[0].answer, found.examples[0].answer)
            if pair not in self.respelled:
                self.reporter.note(f"note: {pair[0]!r} is read as the label {pair[1]!r}")
            self.respelled.add(pair)
        check_answers(updated_task(task, found), found)
        if task.kind == "choice":
            self.labels = set(task.labels) if self.labels is None else self.labels
            new = {e.answer for e in found if e.answer} - self.labels
            if new and not objectives.of(self.registry.base).writes:
                raise DataError(f"{min(new)!r} is no label of {task.name}; cl-adapter update NAME DATA adds labels")
            for answer in new:
                self.labels.add(answer)
                self.reporter.note(f"note: {answer!r} is a new label of {task.name}")
        return found


def _reader(lines: TextIO) -> Callable[[], bytes]:
    """Gives what has come in so far, at least a byte; nothing at the end."""
    try:
        number = lines.fileno()
    except (OSError, AttributeError, io.UnsupportedOperation):
        return lambda: lines.readline().encode()
    return lambda: os.read(number, CHUNK)
