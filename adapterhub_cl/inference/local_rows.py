"""Rows that are computed in this process: labels at once, written answers token by token in one running batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.answerer import Answerer, AskedRow
from adapterhub_cl.answering.running_rows import RunningRows
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.inference.engine_settings import Settings


class LocalRows:
    """The base of this process answers, each row with adapters of the bank. An `AnswersRows`.

    Attributes:
        answerer: answers the rows.
        running: answers that are being written; None for a base whose rows cannot join and leave.
    """

    def __init__(self, base: LoadedBase, bank: LoraBank, settings: Settings, halt: Callable[[], bool]) -> None:
        longest = min(settings.max_length or base.context, base.context)
        self.bank, self._size = bank, settings.batch_size
        self.answerer = Answerer(base.tokenizer, bank, max_length=longest)
        self.answerer.halt = halt
        self.running = RunningRows(self.answerer, self._size) if RunningRows.can(self.answerer) else None

    def __len__(self) -> int:
        return len(self.running) if self.running else 0

    @property
    def max_length(self) -> int:
        return self.answerer.max_length

    @property
    def waiting(self) -> int:
        return self.running.waiting if self.running else 0

    @property
    def writing(self) -> int:
        return self.running.fill if self.running else 0

    @property
    def refs(self) -> list[str]:
        return self.bank.refs

    def reachable(self) -> bool:
        return True

    def expect(self, refs: Iterable[str]) -> None:
        self.bank.shelf.prefetch(ref for ref in refs if ref not in self.bank.refs)

    def answer(self, rows: Sequence[AskedRow], give: Callable[[int, Answer | Exception], None]) -> None:
        self.answerer.answer(rows, give, batch_size=self._size, running=self.running)

    def step(self) -> None:
        if not self.running:
            return
        try:
            self.running.step()
        except BaseException as error:  # of this code itself: what a pass raises reaches the rows concerned
            self.running.abandon(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def keep(self, refs: Collection[str]) -> None:
        """Nothing: the engine takes them off its bank."""

    def close(self) -> None:
        """Nothing: the bank belongs to the engine."""
