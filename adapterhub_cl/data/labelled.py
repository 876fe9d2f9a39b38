"""Examples → token ids for an encoder: only the input is read, and its label is a number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adapterhub_cl.data.tokenise import Tokeniser, Tokens
from adapterhub_cl.types import Example, Task


class LabelledTokeniser(Tokeniser):
    """Tokenises the bare input of a choice task's examples.

    The task's own instruction is the same for every input and is left out. A different instruction is part of the
    question: instruction and input are then read as a pair of texts.

    Args:
        tokenizer: a transformers tokenizer.
        task: gives the labels, and the instruction that is left out.
        max_length: longest input in tokens; longer ones are cut at their end.
    """

    def __init__(self, tokenizer: Any, task: Task, max_length: int) -> None:
        super().__init__(tokenizer, task, max_length)
        self.numbers = {label: number for number, label in enumerate(task.labels)}

    @property
    def longest_answer(self) -> int:
        """0: an encoder's answer takes no tokens."""
        return 0

    def __call__(self, example: Example) -> Tokens:
        own = example.instruction if example.instruction != self.task.instruction else ""
        texts = (own, example.text) if own and example.input else (example.text or example.instruction,)
        found = self.tokenizer(*texts, truncation=False, verbose=False).input_ids
        cut = len(found) > self.max_length
        if cut and example.passage and len(texts) == 1:
            found = self._less_passage(example, len(found))
        elif cut:
            # Cut the longer text of the pair, so that a short question stays complete.
            found = self.tokenizer(
                *texts, truncation="longest_first", max_length=self.max_length, verbose=False
            ).input_ids
        number = self.numbers.get(example.answer) if example.answer is not None else None
        return Tokens(tuple(found), () if number is None else (number,), cut, self.task.name)

    def _less_passage(self, example: Example, count: int) -> list[int]:
        """An input whose passage, which comes first, is shortened at its end so that everything fits."""
        head, tail = example.input[: example.passage], example.input[example.passage :]
        offsets = self._offsets(head)
        keep = len(offsets)
        while count > self.max_length and keep > 0:
            keep = max(0, keep - (count - self.max_length))
            text = (head[: offsets[keep][0]].rstrip() + tail).strip()
            count = len(self.tokenizer(text, verbose=False).input_ids)
        text = (head[: offsets[keep][0]].rstrip() + tail).strip() if keep < len(offsets) else example.input
        return list(self.tokenizer(text, truncation=True, max_length=self.max_length, verbose=False).input_ids)

    def windows(self, example: Example) -> list[Tokens]:
        return [self(example)]

    def prompt(self, example: Example, room: int | None = None) -> Tokens:
        return replace(self(example), answer=())
