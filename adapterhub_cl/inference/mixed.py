"""Answers a batch whose rows have tasks and adapters of their own, on a bank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from adapterhub_cl.answering.choices import LabelTree, score_rows, settle
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bank.rows import Mixture
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.batches import by_length
from adapterhub_cl.data.formats import answer_prefix
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import AdapterError, AdapterHubError, DataError
from adapterhub_cl.inference.classifying import classify_rows, read_input
from adapterhub_cl.inference.generating import Writing, write_rows
from adapterhub_cl.types import Example, Task

ROWS = 32
_KEPT_TREES = 512


@dataclass(frozen=True)
class AskedRow:
    """A row to be answered.

    Attributes:
        task: its prompt format, labels and kind.
        mixture: reference → weight; empty is the base.
        prompt: ids of a raw text, which is gone on with as it is; empty where the task's prompt is made.
        writes: write an answer, whatever the task's kind.
        emit: gets a free answer piece by piece; see `write_rows`.
    """

    task: Task
    example: Example
    mixture: Mixture
    writing: Writing = field(default_factory=Writing)
    prompt: tuple[int, ...] = ()
    writes: bool = False
    emit: Callable[[str], bool] | None = None

    @property
    def chooses(self) -> bool:
        """Whether it is answered with one of its task's labels."""
        return self.task.kind == "choice" and not self.prompt and not self.writes

    def tokeniser(self, base: LoadedBase, max_length: int) -> Tokeniser:
        """What makes its prompt, the same as in the task's training."""
        task = self.task if self.task.kind != "text" else replace(self.task, kind="generation")
        found = Tokeniser(base.tokenizer, task, max_length)
        found.reserve = min(self.writing.max_new_tokens or found.budget(), max_length * 3 // 4)
        return found

    @property
    def prefix(self) -> str | None:
        """What is left out before its answer; see `write_rows`."""
        return None if self.prompt else answer_prefix(self.task.prompt_format)

    def ready(
        self, base: LoadedBase, max_length: int, encode: Tokeniser | None = None
    ) -> tuple[tuple[int, ...], bool, Writing]:
        """Ids of its prompt, whether the input was cut, and how it is written within the tokens that are left.

        Args:
            encode: what `tokeniser` gave for such a row; it reads all labels of a choice, so it is worth keeping.

        Raises:
            DataError: a text for the base alone is longer than its context.
        """
        encode = encode or self.tokeniser(base, max_length)
        prompt, cut = self.prompt, False
        if not prompt:
            asked = 0 if self.chooses else min(self.writing.max_new_tokens or 0, encode.reserve)
            tokens = encode.prompt(self.example.question(), max_length - asked)
            prompt, cut = tokens.prompt, tokens.truncated
        new = self.writing.max_new_tokens or 0
        alone = cut and not self.task.name and not self.example.turns  # nobody said that the base may read less
        if self.writes and (alone or len(prompt) + new > max_length):
            raise DataError(
                f"the text has {len(prompt)} tokens{' and more' if cut else ''}; with {new or encode.reserve} new ones "
                f"that is over the base's {max_length}",
                "shorten the text or lower --max-new-tokens",
            )
        room = max(1, min(encode.reserve, max_length - len(prompt)))
        return prompt, cut, replace(self.writing, max_new_tokens=room)


@dataclass(frozen=True)
class Answered:
    """The answer to a row.

    Attributes:
        scores: label → probability, for choice tasks.
        truncated: the input was cut to fit.
        finished: the answer ended by itself, not at the limit of new tokens.
    """

    text: str
    confidence: float
    scores: dict[str, float] = field(default_factory=dict)
    truncated: bool = False
    finished: bool = True


class _Stream:
    """A row's `emit`; a pass that is repeated gives nothing twice."""

    def __init__(self, emit: Callable[[str], bool]) -> None:
        self.emit, self.given, self.at = emit, 0, 0
        self.error: Exception | None = None

    def again(self) -> _Stream:
        """From the beginning of the answer."""
        self.at = 0
        return self

    def __call__(self, piece: str) -> bool:
        self.at += len(piece)
        new = piece[max(0, len(piece) - (self.at - self.given)) :] if self.at > self.given else ""
        self.given = max(self.given, self.at)
        if not new or self.error is not None:
            return self.error is None
        try:
            return bool(self.emit(new))
        except Exception as error:  # whoever asked made it: it ends this answer and no other
            self.error = error
            return False


@dataclass(frozen=True)
class _Ready:
    """A row with the ids of its prompt; `cut`: the input did not fit."""

    index: int
    row: AskedRow
    prompt: tuple[int, ...]
    cut: bool
    writing: Writing
    stream: _Stream | None = None


class Answerer:
    """Answers rows in mixed batches: choice rows scored with the prompt computed once, the others written.

    Args:
        max_length: tokens of prompt and answer together; None is the base's context.

    Attributes:
        halt: asked while answers are written: True ends them as they are.
    """

    def __init__(self, base: LoadedBase, bank: LoraBank, *, max_length: int | None = None) -> None:
        self.base, self.bank = base, bank
        self.max_length = min(max_length or base.context, base.context)
        self.halt: Callable[[], bool] = lambda: False
        self._trees: dict[tuple[Any, ...], LabelTree] = {}
        self._encoders: dict[tuple[Task, int | None], Tokeniser] = {}

    def answer(
        self, rows: Sequence[AskedRow], give: Callable[[int, Answered | Exception], None], *, batch_size: int = ROWS
    ) -> None:
        """Answer rows, those of choice tasks first.

        Args:
            give: gets each row's number with its answer or what was wrong with it, as soon as its batch is done.
            batch_size: rows in one pass; fewer where they need more adapters than the bank holds.
        """
        ready: list[_Ready] = []
        for index, row in enumerate(rows):
            if self.base.is_encoder and not row.mixture and not row.task.name:
                give(index, Answered("", 0.0))  # no task knows the input, and the base has no labels of its own
                continue
            try:
                self.bank.require(row.mixture)
                stream = None if row.emit is None else _Stream(row.emit)
                ready.append(_Ready(index, row, *self._prompt(row), stream))
            except Exception as error:
                give(index, error)
        for choosing in (True, False):
            for batch in self._batches([one for one in ready if one.row.chooses == choosing], batch_size):
                self._pass(batch, choosing, give)

    def _pass(self, batch: Sequence[_Ready], choosing: bool, give: Callable[[int, Answered | Exception], None]) -> None:
        """One batch; where that fails (memory does not suffice, an adapter went meanwhile), its halves."""
        answers: Sequence[Answered | Exception] = ()
        try:
            choose = self._classify if self.base.is_encoder else self._choose
            answers = (choose if choosing else self._write)(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                answers = [_too_large(batch[0])]
        except Exception as error:
            if len(batch) == 1:
                answers = [error]
        if not answers:  # beyond the `except`, which keeps the memory of the pass that failed
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._pass(half, choosing, give)
            return
        for one, answer in zip(batch, answers, strict=True):
            cut = isinstance(answer, Answered) and one.cut
            give(one.index, replace(answer, truncated=True) if cut else answer)  # type: ignore[type-var]

    # -- inside ----------------------------------------------------------------------------------

    def _prompt(self, row: AskedRow) -> tuple[tuple[int, ...], bool, Writing]:
        """See `Asked.ready`."""
        if self.base.is_encoder:
            return (*read_input(self.base, row.task, row.example, self.max_length), row.writing)
        key = (row.task, row.writing.max_new_tokens)
        if key not in self._encoders:
            if len(self._encoders) >= _KEPT_TREES:
                self._encoders.clear()
            self._encoders[key] = row.tokeniser(self.base, self.max_length)
        return row.ready(self.base, self.max_length, self._encoders[key])

    def _tree(self, task: Task) -> LabelTree:
        key = (task.labels, task.prompt_format)
        if key not in self._trees:
            if len(self._trees) >= _KEPT_TREES:
                self._trees.clear()
            encode = Tokeniser(self.base.tokenizer, task, self.max_length)
            self._trees[key] = LabelTree({label: encode.answer(label) for label in task.labels})
        return self._trees[key]

    def _batches(self, ready: Sequence[_Ready], size: int) -> Iterator[list[_Ready]]:
        """Rows of like length together, with no more adapters than the bank holds."""
        for indices in by_length([len(one.prompt) for one in ready], size):
            batch: list[_Ready] = []
            refs: set[str] = set()
            for one in (ready[k] for k in indices):
                if batch and len(refs.union(one.row.mixture)) > self.bank.capacity:
                    yield batch
                    batch, refs = [], set()
                batch.append(one)
                refs.update(one.row.mixture)
            yield batch

    def _classify(self, batch: Sequence[_Ready]) -> list[Answered | Exception]:
        rows = [one.row for one in batch]
        found = classify_rows(
            self.base,
            self.bank,
            [row.task for row in rows],
            [row.mixture for row in rows],
            [one.prompt for one in batch],
        )
        return [
            _diverged(row) if answer is None else Answered(*answer) for row, answer in zip(rows, found, strict=True)
        ]

    @torch.no_grad()
    def _choose(self, batch: Sequence[_Ready]) -> list[Answered | Exception]:
        rows, prompts = [one.row for one in batch], [one.prompt for one in batch]
        trees, pad = [self._tree(row.task) for row in rows], self.base.tokenizer.pad_token_id
        with self.base.lock, self.base.autocast():
            if any(tree.tokens for tree in trees):
                settle(self.base.model, pad)  # on the base alone, before the rows have their adapters
            with self.bank.rows([row.mixture for row in rows]) as model:
                scores = score_rows(model, trees, prompts, pad)
        answers: list[Answered | Exception] = []
        for row, tree, logs in zip(rows, trees, scores, strict=True):
            if not torch.isfinite(logs).all():
                answers.append(_diverged(row))
                continue
            shares = logs.softmax(-1).tolist()
            best = max(range(len(shares)), key=shares.__getitem__)
            answers.append(Answered(tree.labels[best], shares[best], dict(zip(tree.labels, shares, strict=True))))
        return answers

    def _write(self, batch: Sequence[_Ready]) -> list[Answered | Exception]:
        rows, prompts = [one.row for one in batch], [one.prompt for one in batch]
        # Each row has its own room: positions are counted without the padding, so a long neighbour takes none of it.
        wanted, prefixes = [one.writing for one in batch], [row.prefix for row in rows]
        emit = [one.stream.again() if one.stream else None for one in batch]
        with self.bank.rows([row.mixture for row in rows], keep=True) as model, self.base.autocast():
            written = write_rows(model, self.base, prompts, wanted, prefixes=prefixes, emit=emit, halt=self.halt)
        answers: list[Answered | Exception] = []
        for row, one, ready in zip(rows, written, batch, strict=True):
            if ready.stream is not None and ready.stream.error is not None:
                answers.append(ready.stream.error)
                continue
            sound = math.isfinite(one.confidence)
            answers.append(Answered(one.text, one.confidence, finished=one.finished) if sound else _diverged(row))
        return answers


def _too_large(one: _Ready) -> AdapterHubError:
    return AdapterHubError(
        f"not enough memory for one input of {len(one.prompt)} tokens", "shorten it, or answer with fewer new tokens"
    )


def _diverged(row: AskedRow) -> AdapterError:
    return AdapterError(
        f"{' + '.join(row.mixture) or 'the base'} gives no finite scores",
        "its weights have diverged: train it again with a lower --learning-rate",
    )
