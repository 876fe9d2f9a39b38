"""Examples → token ids: the prompt and the answer apart, so that the loss is taken on the answer only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub_cl.data.formats import render
from adapterhub_cl.errors import DataError
from adapterhub_cl.types import Example, Task


@dataclass(frozen=True)
class Tokens:
    """One example as token ids.

    Attributes:
        prompt: ids that get no loss; at least one, because the first id of a text is predicted from nothing.
        answer: ids that get the loss, ending with the end-of-text id; empty where only a prediction is wanted.
        truncated: whether the input was cut to fit.
        task: of an example whose answer is no text but a label of this task: `answer` is then that label's number
            among the task's labels, and is not read.
        hidden: of raw text for a masked language model: numbers of the ids in `prompt` that are to be found again;
            `answer` is what they are.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    truncated: bool = False
    task: str = ""
    hidden: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """What the base reads."""
        return self.prompt if self.task or self.hidden else (*self.prompt, *self.answer)

    def __len__(self) -> int:
        return len(self.prompt) + (0 if self.task or self.hidden else len(self.answer))


class Tokeniser:
    """Applies a task's prompt format and a base's tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        task: gives the prompt format and the instruction for inputs that come without one.
        max_length: longest example in tokens, prompt and answer together. Longer inputs are cut at their end,
            so that the instruction before and the "Answer:" after them stay whole.
    """

    def __init__(self, tokenizer: Any, task: Task, max_length: int) -> None:
        self.tokenizer, self.task, self.max_length = tokenizer, task, max_length

    def __call__(self, example: Example) -> Tokens:
        # Raw text under another kind of task: what a knowledge update learned and kept.
        if self.task.kind == "text" or example.is_raw:
            return self._raw(example)
        if not example.instruction and self.task.instruction:
            example = replace(example, instruction=self.task.instruction)
        answer = self.answer(example.answer) if example.answer is not None else ()
        room = self.max_length - len(answer)
        prompt = self._prompt(example)
        if len(prompt) <= room:
            return Tokens(prompt, answer)
        return Tokens(self._shortened(example, prompt, room), answer, truncated=True)

    def windows(self, example: Example) -> list[Tokens]:
        """Raw text as one or more examples that together have every id, each predicted once; others as one."""
        if not (self.task.kind == "text" or example.is_raw):
            return [self(example)]
        ids = (*self.tokenizer(example.answer or example.input, verbose=False).input_ids, self.tokenizer.eos_token_id)
        step = max(1, self.max_length - 1)
        starts = range(0, max(1, len(ids) - 1), step)
        return [Tokens(ids[k : k + 1], ids[k + 1 : k + self.max_length]) for k in starts]

    def many(self, examples: Sequence[Example]) -> list[Tokens]:
        return [self(example) for example in examples]

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer as it follows the prompt, with the end-of-text id."""
        prefix = render(self.task.prompt_format, Example(input="x"), self._chat).answer_prefix
        ids = self._ids(prefix + text)
        if not ids:
            raise DataError(f"the answer {text!r} has no tokens", "remove rows whose answer is empty")
        return (*ids, self.tokenizer.eos_token_id)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _chat(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _prompt(self, example: Example) -> tuple[int, ...]:
        prompt = render(self.task.prompt_format, example, self._chat)
        ids = tuple(self.tokenizer(prompt.text, add_special_tokens=prompt.add_special_tokens, verbose=False).input_ids)
        begin = self.tokenizer.bos_token_id
        return ids or (self.tokenizer.eos_token_id if begin is None else begin,)

    def _shortened(self, example: Example, prompt: tuple[int, ...], room: int) -> tuple[int, ...]:
        """The prompt with as much of the input as fits into `room` ids."""
        text = example.input
        offsets = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        ).offset_mapping
        keep = len(offsets)
        while len(prompt) > room and keep > 0:
            keep = max(0, keep - (len(prompt) - room))
            shorter = text[: offsets[keep][0]].rstrip()
            if not shorter and not example.instruction:
                break  # would be raw text, without its "Answer:"
            prompt = self._prompt(replace(example, input=shorter))
        if len(prompt) > room:
            raise DataError(
                f"the instruction and the answer alone are longer than {self.max_length} tokens",
                "raise --max-length or shorten the instruction",
            )
        return prompt

    def _raw(self, example: Example) -> Tokens:
        ids = tuple(self.tokenizer(example.answer or example.input, verbose=False).input_ids)
        ids = (*ids, self.tokenizer.eos_token_id)
        # The first id has nothing before it to be predicted from.
        return Tokens(ids[:1], ids[1 : self.max_length], truncated=len(ids) > self.max_length)
