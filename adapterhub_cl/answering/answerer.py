"""Answers rows, each with its own prompt, labels and adapters. Training's evaluation, `predict` and the engine all use
this code, so a score can never differ from the answers that users get."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

from adapterhub_cl.answering import Answer, evaluating
from adapterhub_cl.answering.asked_rows import AskedRow, Mixture, Ready
from adapterhub_cl.answering.choices import likeliest, score_rows, settle
from adapterhub_cl.answering.classifying import HeadPart, classify_rows, head_part
from adapterhub_cl.answering.row_prompts import RowPrompts
from adapterhub_cl.answering.writing import write_rows
from adapterhub_cl.bases.encoders import head_of
from adapterhub_cl.data.batches import by_length

__all__ = ["ROWS", "Adapters", "Answerer", "AskedRow", "Mixture", "OneModel", "Running"]

ROWS = 32


class Adapters(Protocol):
    """Applies each row's adapters to a model: a `LoraBank` or a `OneModel`.

    Attributes:
        capacity: how many different adapters one pass can use.
        model: the model that they are applied to.
    """

    capacity: int

    @property
    def model(self) -> Any: ...

    def require(self, refs: Iterable[str]) -> None:
        """Load these adapters, all at the same time."""

    def rows(self, mixtures: Sequence[Mixture], *, keep: bool = False) -> AbstractContextManager[Any]:
        """Yields the model, which answers row k with mixtures[k] within the block.

        Args:
            keep: keep what one pass gathers for the next: for writing token by token. The context can then be entered
                again and again.
        """

    def hold(self, refs: Iterable[str]) -> None:
        """Load these adapters and keep them at hand until `release`, whatever is evicted or removed meanwhile."""

    def release(self, refs: Iterable[str]) -> None:
        """Undo `hold`."""

    def head_part(self, task: str, mixture: Mixture) -> HeadPart:
        """The rows of an encoder's head that are a task's labels."""


class Running(Protocol):
    """Rows that are being written between the calls of `Answerer.answer`."""

    def add(self, ready: Sequence[Ready], give: Callable[[int, Answer | Exception], None]) -> None:
        """Let rows join, now or when there is room; `give` is called with each row's index and its answer or error."""


class OneModel:
    """Answers every row with the adapter that is active on the model, or with the bare model."""

    capacity = sys.maxsize

    def __init__(self, model: Any) -> None:
        self.model = model

    def require(self, refs: Iterable[str]) -> None:
        """Nothing to load: the adapter is on the model already."""

    hold = release = require

    @contextmanager
    def rows(self, mixtures: Sequence[Mixture], *, keep: bool = False) -> Iterator[Any]:
        with evaluating(self.model):
            yield self.model

    def head_part(self, task: str, mixture: Mixture) -> HeadPart:
        return head_part(self.model, task)


class Answerer:
    """Answers rows in mixed batches: labels of choice tasks are scored, other answers are written.

    Args:
        max_length: limit of prompt and answer together, in tokens.
        strict: report an answer whose confidence is not finite as an error.

    Attributes:
        halt: called before each token that is written; True ends all answers where they are.
        prompts: makes the rows' prompts.
    """

    def __init__(self, tokenizer: Any, adapters: Adapters, *, max_length: int, strict: bool = True) -> None:
        self.tokenizer, self.adapters, self.max_length, self.strict = tokenizer, adapters, max_length, strict
        self.halt: Callable[[], bool] = lambda: False
        self._labelled = head_of(adapters.model) is not None
        self.prompts = RowPrompts(tokenizer, max_length, labelled=self._labelled)
        self._settled = False

    def answer(
        self,
        rows: Sequence[AskedRow],
        give: Callable[[int, Answer | Exception], None],
        *,
        batch_size: int = ROWS,
        progress: Callable[[int], None] | None = None,
        running: Running | None = None,
    ) -> None:
        """Answer rows, those of choice tasks first.

        Args:
            give: called with each row's index and its answer or error, as soon as its batch is done.
            batch_size: rows in one pass; fewer if they need more adapters than the bank holds.
            progress: called with the number of rows done after each batch.
            running: rows that are written join it, and are answered by its steps.
        """
        ready: list[Ready] = []
        for index, row in enumerate(rows):
            if self._labelled and not row.mixture and not row.task.name:
                give(index, Answer("", 0.0, {}))  # no task knows the input, and the base has no labels of its own
                continue
            try:
                if row.chooses or running is None:
                    self.adapters.require(row.mixture)
                ready.append(self.prompts.ready(index, row))
            except Exception as error:
                give(index, error)
        if running is not None:
            running.add([one for one in ready if not one.row.chooses], give)
            ready = [one for one in ready if one.row.chooses]
        for choosing in (True, False):
            for batch in self._batches([one for one in ready if one.row.chooses == choosing], batch_size):
                self._pass(batch, choosing, give)
                if progress is not None:
                    progress(len(batch))

    def all(self, rows: Sequence[AskedRow], **options: Any) -> list[Answer]:
        """The answers, in order; raises the first row's error. Options: see `answer`."""
        found = [Answer("", 0.0, {})] * len(rows)

        def give(index: int, answer: Answer | Exception) -> None:
            if isinstance(answer, Exception):
                raise answer
            found[index] = answer

        self.answer(rows, give, **options)
        return found

    # -- inside ----------------------------------------------------------------------------------

    def _pass(self, batch: Sequence[Ready], choosing: bool, give: Callable[[int, Answer | Exception], None]) -> None:
        """Answer a batch; if that fails (out of memory, an adapter that was deleted meanwhile), answer its halves."""
        answers: Sequence[Answer | Exception] = ()
        try:
            choose = self._classify if self._labelled else self._choose
            answers = (choose if choosing else self._write)(batch)
        except Exception as error:
            if len(batch) == 1:
                answers = [batch[0].failure(error)]
        if not answers:  # beyond the `except`, which keeps the memory of the pass that failed
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._pass(half, choosing, give)
            return
        for one, answer in zip(batch, answers, strict=True):
            give(one.index, one.checked(answer, self.strict))

    def _batches(self, ready: Sequence[Ready], size: int) -> Iterator[list[Ready]]:
        """Batches of rows of similar length, with no more adapters than fit into one pass."""
        for indices in by_length([len(one.prompt) for one in ready], size):
            batch: list[Ready] = []
            refs: set[str] = set()
            for one in (ready[k] for k in indices):
                if batch and len(refs.union(one.row.mixture)) > self.adapters.capacity:
                    yield batch
                    batch, refs = [], set()
                batch.append(one)
                refs.update(one.row.mixture)
            yield batch

    @torch.no_grad()
    def _classify(self, batch: Sequence[Ready]) -> list[Answer]:
        rows = [one.row for one in batch]
        with self.adapters.rows([row.mixture for row in rows]) as model:
            parts = [self.adapters.head_part(row.task.name, row.mixture) for row in rows]
            prompts, pad = [one.prompt for one in batch], self.tokenizer.pad_token_id
            return classify_rows(model, [row.task for row in rows], parts, prompts, pad)

    @torch.no_grad()
    def _choose(self, batch: Sequence[Ready]) -> list[Answer]:
        rows, prompts = [one.row for one in batch], [one.prompt for one in batch]
        trees, pad = [self.prompts.tree(row.task) for row in rows], self.tokenizer.pad_token_id
        if not self._settled and any(tree.tokens for tree in trees):
            with self.adapters.rows([{}, {}]) as model:  # decided on the base alone
                settle(model, pad)
            self._settled = True
        with self.adapters.rows([row.mixture for row in rows]) as model:
            scores = score_rows(model, trees, prompts, pad)
        return [likeliest(tree.labels, logs) for tree, logs in zip(trees, scores, strict=True)]

    def _write(self, batch: Sequence[Ready]) -> list[Answer]:
        rows, prompts = [one.row for one in batch], [one.prompt for one in batch]
        # Positions are counted without the padding, so a long neighbour takes no room from a row.
        wanted, frames = [one.writing for one in batch], [self.prompts.frame(row) for row in rows]
        emit = [one.stream.again() if one.stream else None for one in batch]
        return write_rows(
            self.adapters.model,
            self.tokenizer,
            prompts,
            wanted,
            frames=frames,
            emit=emit,
            halt=self.halt,
            mixtures=[row.mixture for row in rows],
            apply=lambda mixtures: self.adapters.rows(mixtures, keep=True),
        )
