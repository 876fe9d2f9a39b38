"""Rows that are written while others are asked for: they join a running batch and leave it between two tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.answerer import Answerer
from adapterhub_cl.answering.asked_rows import Ready
from adapterhub_cl.answering.decoding import Decoder, alike, can_decode
from adapterhub_cl.answering.written import WrittenRow
from adapterhub_cl.data.chat import end_ids
from adapterhub_cl.errors import AdapterHubError, is_out_of_memory


@dataclass(eq=False)
class _Entry:
    """A row that waits or is being written.

    Attributes:
        give: called once, with its index and its answer or error.
        held: its adapters are held by the bank.
    """

    ready: Ready
    row: WrittenRow
    give: Callable[[int, Answer | Exception], None]
    held: bool = False


class RunningRows:
    """A batch that rows join and leave. Rows wait, in order, while the batch is full or their adapters do not fit.

    A row keeps its adapters from the moment it joins. What fails in a pass (out of memory, an adapter that cannot be
    used) is tried again with half as many rows: what was written of a row is read again as a part of its prompt, so
    nothing is written or emitted twice. A row that fails alone gets the error.

    Args:
        answerer: whose tokenizer, adapters and `halt` are used.
        size: rows in the batch at most.
    """

    @staticmethod
    def can(answerer: Answerer) -> bool:
        """Whether rows can join and leave while the model writes."""
        return can_decode(answerer.adapters.model)

    def __init__(self, answerer: Answerer, size: int) -> None:
        self._answerer, self._adapters, self._size, self._room = answerer, answerer.adapters, size, size
        self._waiting: deque[_Entry] = deque()
        self._running: dict[WrittenRow, _Entry] = {}
        model = self._adapters.model
        self._ends = end_ids(answerer.tokenizer, model)
        self._decoder = Decoder(
            model,
            lambda mixtures: self._adapters.rows(mixtures, keep=True),
            answerer.tokenizer.pad_token_id,
            self._ends,
        )

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def waiting(self) -> int:
        """How many rows wait to join."""
        return len(self._waiting)

    @property
    def fill(self) -> int:
        """How many rows are being written."""
        return len(self._running)

    def add(self, ready: Sequence[Ready], give: Callable[[int, Answer | Exception], None]) -> None:
        """Let rows join with the next step, or as soon as there is room.

        Args:
            give: called with each row's index and its answer or error.
        """
        ends = set(self._ends)
        for one in ready:
            frame = self._answerer.prompts.frame(one.row)
            row = WrittenRow(
                self._answerer.tokenizer, ends, one.prompt, one.writing, frame, one.stream, one.row.mixture
            )
            self._waiting.append(_Entry(one, row, give))

    def step(self) -> None:
        """Let rows join, and write a token of every row."""
        if self._answerer.halt():
            self._halt()
            return
        self._dismiss()
        self._admit()
        if not self._running:
            return
        failed: Exception | None = None
        try:
            self._finished(self._decoder.step())
        except Exception as error:
            failed = error.with_traceback(None)  # its frames keep the memory of the pass
        if failed is not None:
            self._split(failed)

    def abandon(self, error: Exception) -> None:
        """Give all rows an error."""
        self._decoder.clear()
        entries = [*self._running.values(), *self._waiting]
        self._running.clear()
        self._waiting.clear()
        for entry in entries:
            self._give(entry, error)

    # -- inside ----------------------------------------------------------------------------------

    def _halt(self) -> None:
        """End all answers where they are."""
        self._finished(self._decoder.clear())
        self.abandon(AdapterHubError("the engine was closed before it answered", "ask again: hub.engine()"))

    def _dismiss(self) -> None:
        """Free the rows that nobody waits for any more."""
        gone = [entry for entry in self._running.values() if not entry.ready.row.wanted()]
        if gone:
            self._decoder.drop([entry.row for entry in gone])
            self._finished([entry.row for entry in gone])
        if any(not entry.ready.row.wanted() for entry in self._waiting):
            gone = [entry for entry in self._waiting if not entry.ready.row.wanted()]
            self._waiting = deque(entry for entry in self._waiting if entry not in gone)
            for entry in gone:
                self._give(entry, AdapterHubError("nobody waits for this answer any more", "ask again"))

    def _admit(self) -> None:
        """Let those join for whom there is room; who came first is not overtaken."""
        refs = {ref for row in self._running for ref in row.mixture}
        chosen: list[_Entry] = []
        while self._waiting and len(self._running) + len(chosen) < self._room:
            wanted = refs.union(self._waiting[0].row.mixture)
            if len(wanted) > self._adapters.capacity and (self._running or chosen):
                break
            entry = self._waiting.popleft()
            try:
                if not entry.held:
                    self._adapters.hold(entry.row.mixture)
                    entry.held = True
            except Exception as error:
                self._give(entry, error)
                continue
            refs = wanted
            chosen.append(entry)
        entries = {entry.row: entry for entry in chosen}
        for group in alike([entry.row for entry in chosen]):
            self._join([entries[row] for row in group])

    def _join(self, entries: Sequence[_Entry]) -> None:
        """Read the prompts of rows; where that fails, of half as many."""
        rows = [entry.row for entry in entries]
        failed: Exception | None = None
        try:
            self._decoder.join(rows)
        except Exception as error:
            failed = error.with_traceback(None)
        joined = set(self._decoder.rows)
        left = [entry for entry in entries if not entry.row.done and entry.row not in joined]
        self._running |= {entry.row: entry for entry in entries if entry not in left}
        self._finished([row for row in rows if row.done])
        if failed is None:
            return
        if len(entries) > 1:
            for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                if half:
                    self._join(half)
        elif left and is_out_of_memory(failed) and self._running:
            self._room = len(self._running)  # it waits until the others are done
            self._waiting.appendleft(left[0])
        elif left:
            self._give(left[0], left[0].ready.failure(failed))

    def _split(self, error: Exception) -> None:
        """A pass over all rows failed: go on with half of them, the others wait."""
        rows = self._decoder.clear()
        entries = [self._running.pop(row) for row in rows]
        if len(entries) == 1 and not entries[0].row.done:
            self._give(entries[0], entries[0].ready.failure(error))
            return
        self._room = max(1, len(entries) // 2)
        for entry in reversed(entries):
            if entry.row.done:
                self._running[entry.row] = entry
                self._finished([entry.row])
            else:
                self._waiting.appendleft(entry)

    def _finished(self, rows: Sequence[WrittenRow]) -> None:
        for row in rows:
            self._room = min(self._size, self._room + 1)  # where less room was found, one more row is tried
            self._give(self._running.pop(row), row.finish())

    def _give(self, entry: _Entry, answer: Answer | Exception) -> None:
        if entry.held:
            self._adapters.release(entry.row.mixture)
            entry.held = False
        entry.give(entry.ready.index, entry.ready.checked(answer, self._answerer.strict))
