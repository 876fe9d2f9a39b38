"""What an engine asks for answers: the base of this process, or a running vLLM."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.answerer import AskedRow


class AnswersRows(Protocol):
    """Answers rows whose task and adapters are known. All methods are called by the engine's thread, and so is `give`.

    Attributes:
        max_length: limit of prompt and answer together, in tokens.
        waiting: rows that have not begun; `writing`: those that are being written.
        refs: the versions that are loaded.
    """

    @property
    def max_length(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def writing(self) -> int: ...

    @property
    def refs(self) -> list[str]: ...

    def __len__(self) -> int:
        """How many rows `step` still has to do with."""

    def reachable(self) -> bool:
        """Whether what computes the answers can be asked; called by any thread, and may wait for some seconds."""

    def expect(self, refs: Iterable[str]) -> None:
        """Begin to read versions that will be asked for."""

    def answer(self, rows: Sequence[AskedRow], give: Callable[[int, Answer | Exception], None]) -> None:
        """Answer rows, now or in later steps; `give` is called with each row's index and its answer or error."""

    def step(self) -> None:
        """Go on with the rows that are not answered; it returns after some milliseconds. It does not raise."""

    def keep(self, refs: Collection[str]) -> None:
        """Give up the versions that are not among these: they are no longer in the hub."""

    def close(self) -> None:
        """Let go of whatever it holds."""
