"""Turns rows into token ids: their prompts, and the labels of choice tasks; nothing is computed with a model."""

from __future__ import annotations

from typing import Any

from adapterhub_cl.answering.asked_rows import AskedRow, Ready, Stream
from adapterhub_cl.answering.choices import LabelTree
from adapterhub_cl.data.formats import Frame
from adapterhub_cl.data.labelled import LabelledTokeniser
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import UsageError
from adapterhub_cl.types import Task

_KEPT = 512  # label trees and tokenisers


class RowPrompts:
    """Prompts and labels in token ids, exactly as in each task's training.

    Args:
        max_length: limit of prompt and answer together, in tokens.
        labelled: whether the base is an encoder with a head, which answers choice tasks only.
    """

    def __init__(self, tokenizer: Any, max_length: int, *, labelled: bool = False) -> None:
        self.tokenizer, self.max_length, self.labelled = tokenizer, max_length, labelled
        self._trees: dict[tuple[Any, ...], LabelTree] = {}
        self._encoders: dict[tuple[Task, int | None], Tokeniser] = {}

    def ready(self, index: int, row: AskedRow) -> Ready:
        """A row with its prompt. Tokenisers are kept, because making one reads all labels of a choice task.

        Raises:
            DataError: a text for the base alone is longer than the context.
            UsageError: an encoder is asked to write.
        """
        key = (row.task, row.writing.max_new_tokens)
        if key not in self._encoders:
            if len(self._encoders) >= _KEPT:
                self._encoders.clear()
            self._encoders[key] = self._tokeniser(row)
        stream = None if row.emit is None else Stream(row.emit)
        return Ready(index, row, *row.ready(self._encoders[key], self.max_length), stream)

    def frame(self, row: AskedRow) -> Frame | None:
        """What a row's prompt format writes around the answer, and what is removed from it; see `write_rows`."""
        return None if row.prompt else Tokeniser(self.tokenizer, row.task, self.max_length).frame

    def tree(self, task: Task) -> LabelTree:
        """The labels of a choice task."""
        key = (task.labels, task.prompt_format)
        if key not in self._trees:
            if len(self._trees) >= _KEPT:
                self._trees.clear()
            encode = Tokeniser(self.tokenizer, task, self.max_length)
            self._trees[key] = LabelTree({label: encode.answer(label) for label in task.labels})
        return self._trees[key]

    def _tokeniser(self, row: AskedRow) -> Tokeniser:
        if not self.labelled:
            return row.tokeniser(self.tokenizer, self.max_length)
        if row.task.kind != "choice":
            raise UsageError(
                f"an encoder answers choice tasks, and {row.task.name} is a {row.task.kind} task", "name another --task"
            )
        return LabelledTokeniser(self.tokenizer, row.task, self.max_length)
