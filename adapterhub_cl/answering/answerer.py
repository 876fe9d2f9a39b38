"""Answers rows, each with its own prompt, labels and adapters. Training's evaluation, `predict` and the engine all use
this code, so a score can never differ from the answers that users get."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from adapterhub_cl.answering import Answer, evaluating
from adapterhub_cl.answering.choices import LabelTree, likeliest, score_rows, settle
from adapterhub_cl.answering.classifying import HeadPart, classify_rows, head_part
from adapterhub_cl.answering.writing import Writing, write_rows
from adapterhub_cl.bases.encoders import head_of
from adapterhub_cl.data.batches import by_length
from adapterhub_cl.data.labelled import LabelledTokeniser
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import AdapterError, AdapterHubError, DataError, UsageError, is_out_of_memory
from adapterhub_cl.types import Example, Task

ROWS = 32
_KEPT = 512  # label trees and tokenisers
Mixture = Mapping[str, float]  # reference → weight; empty is the base alone


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
            keep: keep what one pass gathers for the next: for writing token by token.
        """

    def head_part(self, task: str, mixture: Mixture) -> HeadPart:
        """The rows of an encoder's head that are a task's labels."""


class OneModel:
    """Answers every row with the adapter that is active on the model, or with the bare model."""

    capacity = sys.maxsize

    def __init__(self, model: Any) -> None:
        self.model = model

    def require(self, refs: Iterable[str]) -> None:
        """Nothing to load: the adapter is on the model already."""

    @contextmanager
    def rows(self, mixtures: Sequence[Mixture], *, keep: bool = False) -> Iterator[Any]:
        with evaluating(self.model):
            yield self.model

    def head_part(self, task: str, mixture: Mixture) -> HeadPart:
        return head_part(self.model, task)


@dataclass(frozen=True)
class AskedRow:
    """A row to be answered.

    Attributes:
        task: its prompt format, labels and kind.
        mixture: the adapters that answer; `OneModel` ignores it.
        prompt: token ids of a raw text to continue as it is; empty: the task's prompt is built from the example.
        writes: write an answer, whatever the task's kind.
        emit: receives a written answer piece by piece; see `write_rows`.
    """

    task: Task
    example: Example
    mixture: Mixture = field(default_factory=dict)
    writing: Writing = field(default_factory=Writing)
    prompt: tuple[int, ...] = ()
    writes: bool = False
    emit: Callable[[str], bool] | None = None

    @property
    def chooses(self) -> bool:
        """Whether it is answered with one of its task's labels."""
        return self.task.kind == "choice" and not self.prompt and not self.writes

    def tokeniser(self, tokenizer: Any, max_length: int) -> Tokeniser:
        """Builds its prompt exactly as in the task's training."""
        task = self.task if self.task.kind != "text" else replace(self.task, kind="generation")
        found = Tokeniser(tokenizer, task, max_length)
        found.reserve = max(1, min(self.writing.max_new_tokens or found.budget(), max_length * 3 // 4))
        return found

    def ready(self, encode: Tokeniser, max_length: int) -> tuple[tuple[int, ...], bool, Writing]:
        """Token ids of its prompt, whether the input was cut, and its settings with a limit that fits.

        Args:
            encode: the result of `tokeniser`, which may be reused for rows of the same task and limit.

        Raises:
            DataError: a text for the base alone is longer than the context.
        """
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


class _Stream:
    """A row's `emit`. When a pass is repeated, pieces that were emitted before are not emitted again."""

    def __init__(self, emit: Callable[[str], bool]) -> None:
        self.emit, self.given, self.at = emit, 0, 0
        self.error: Exception | None = None

    def again(self) -> _Stream:
        """Start a repeated pass."""
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
        except Exception as error:  # the caller's own error ends this answer and no other
            self.error = error
            return False


@dataclass(frozen=True)
class _Ready:
    """A row with the token ids of its prompt; `cut`: the input did not fit."""

    index: int
    row: AskedRow
    prompt: tuple[int, ...]
    cut: bool
    writing: Writing
    stream: _Stream | None = None


class Answerer:
    """Answers rows in mixed batches: labels of choice tasks are scored, other answers are written.

    Args:
        max_length: limit of prompt and answer together, in tokens.
        strict: report an answer whose confidence is not finite as an error.

    Attributes:
        halt: called before each token that is written; True ends all answers where they are.
    """

    def __init__(self, tokenizer: Any, adapters: Adapters, *, max_length: int, strict: bool = True) -> None:
        self.tokenizer, self.adapters, self.max_length, self.strict = tokenizer, adapters, max_length, strict
        self.halt: Callable[[], bool] = lambda: False
        self._labelled = head_of(adapters.model) is not None
        self._settled = False
        self._trees: dict[tuple[Any, ...], LabelTree] = {}
        self._encoders: dict[tuple[Task, int | None], Tokeniser] = {}

    def answer(
        self,
        rows: Sequence[AskedRow],
        give: Callable[[int, Answer | Exception], None],
        *,
        batch_size: int = ROWS,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Answer rows, those of choice tasks first.

        Args:
            give: called with each row's index and its answer or error, as soon as its batch is done.
            batch_size: rows in one pass; fewer if they need more adapters than the bank holds.
            progress: called with the number of rows done after each batch.
        """
        ready: list[_Ready] = []
        for index, row in enumerate(rows):
            if self._labelled and not row.mixture and not row.task.name:
                give(index, Answer("", 0.0, {}))  # no task knows the input, and the base has no labels of its own
                continue
            try:
                self.adapters.require(row.mixture)
                stream = None if row.emit is None else _Stream(row.emit)
                ready.append(_Ready(index, row, *self._prompt(row), stream))
            except Exception as error:
                give(index, error)
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

    def _pass(self, batch: Sequence[_Ready], choosing: bool, give: Callable[[int, Answer | Exception], None]) -> None:
        """Answer a batch; if that fails (out of memory, an adapter that was deleted meanwhile), answer its halves."""
        answers: Sequence[Answer | Exception] = ()
        try:
            choose = self._classify if self._labelled else self._choose
            answers = (choose if choosing else self._write)(batch)
        except Exception as error:
            if len(batch) == 1:
                answers = [_too_large(batch[0]) if is_out_of_memory(error) else error]
        if not answers:  # beyond the `except`, which keeps the memory of the pass that failed
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._pass(half, choosing, give)
            return
        for one, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Answer) and self.strict and not math.isfinite(answer.confidence):
                answer = _diverged(one.row)
            if isinstance(answer, Answer):
                answer = answer._replace(truncated=one.cut, prompt_tokens=len(one.prompt))
            give(one.index, answer)

    def _prompt(self, row: AskedRow) -> tuple[tuple[int, ...], bool, Writing]:
        """See `AskedRow.ready`. Tokenisers are kept, because making one reads all labels of a choice task."""
        key = (row.task, row.writing.max_new_tokens)
        if key not in self._encoders:
            if len(self._encoders) >= _KEPT:
                self._encoders.clear()
            self._encoders[key] = self._tokeniser(row)
        return row.ready(self._encoders[key], self.max_length)

    def _tokeniser(self, row: AskedRow) -> Tokeniser:
        if not self._labelled:
            return row.tokeniser(self.tokenizer, self.max_length)
        if row.task.kind != "choice":
            raise UsageError(
                f"an encoder answers choice tasks, and {row.task.name} is a {row.task.kind} task", "name another --task"
            )
        return LabelledTokeniser(self.tokenizer, row.task, self.max_length)

    def _prefix(self, row: AskedRow) -> str | None:
        """The text that a row's prompt format puts before the answer, and that is removed from it; see `write_rows`."""
        return None if row.prompt else Tokeniser(self.tokenizer, row.task, self.max_length).prefix

    def _tree(self, task: Task) -> LabelTree:
        key = (task.labels, task.prompt_format)
        if key not in self._trees:
            if len(self._trees) >= _KEPT:
                self._trees.clear()
            encode = Tokeniser(self.tokenizer, task, self.max_length)
            self._trees[key] = LabelTree({label: encode.answer(label) for label in task.labels})
        return self._trees[key]

    def _batches(self, ready: Sequence[_Ready], size: int) -> Iterator[list[_Ready]]:
        """Batches of rows of similar length, with no more adapters than fit into one pass."""
        for indices in by_length([len(one.prompt) for one in ready], size):
            batch: list[_Ready] = []
            refs: set[str] = set()
            for one in (ready[k] for k in indices):
                if batch and len(refs.union(one.row.mixture)) > self.adapters.capacity:
                    yield batch
                    batch, refs = [], set()
                batch.append(one)
                refs.update(one.row.mixture)
            yield batch

    @torch.no_grad()
    def _classify(self, batch: Sequence[_Ready]) -> list[Answer]:
        rows = [one.row for one in batch]
        with self.adapters.rows([row.mixture for row in rows]) as model:
            parts = [self.adapters.head_part(row.task.name, row.mixture) for row in rows]
            prompts, pad = [one.prompt for one in batch], self.tokenizer.pad_token_id
            return classify_rows(model, [row.task for row in rows], parts, prompts, pad)

    @torch.no_grad()
    def _choose(self, batch: Sequence[_Ready]) -> list[Answer]:
        rows, prompts = [one.row for one in batch], [one.prompt for one in batch]
        trees, pad = [self._tree(row.task) for row in rows], self.tokenizer.pad_token_id
        if not self._settled and any(tree.tokens for tree in trees):
            with self.adapters.rows([{}, {}]) as model:  # decided on the base alone
                settle(model, pad)
            self._settled = True
        with self.adapters.rows([row.mixture for row in rows]) as model:
            scores = score_rows(model, trees, prompts, pad)
        return [likeliest(tree.labels, logs) for tree, logs in zip(trees, scores, strict=True)]

    def _write(self, batch: Sequence[_Ready]) -> list[Answer | Exception]:
        rows, prompts = [one.row for one in batch], [one.prompt for one in batch]
        # Positions are counted without the padding, so a long neighbour takes no room from a row.
        wanted, prefixes = [one.writing for one in batch], [self._prefix(row) for row in rows]
        emit = [one.stream.again() if one.stream else None for one in batch]
        with self.adapters.rows([row.mixture for row in rows], keep=True) as model:
            written = write_rows(model, self.tokenizer, prompts, wanted, prefixes=prefixes, emit=emit, halt=self.halt)
        return [(one.stream and one.stream.error) or answer for one, answer in zip(batch, written, strict=True)]


def _too_large(one: _Ready) -> AdapterHubError:
    return AdapterHubError(
        f"not enough memory for one input of {len(one.prompt)} tokens", "shorten it, or answer with fewer new tokens"
    )


def _diverged(row: AskedRow) -> AdapterError:
    return AdapterError(
        f"{' + '.join(row.mixture) or 'the base'} gives no finite scores",
        "its weights have diverged: train it again with a lower --learning-rate",
    )
