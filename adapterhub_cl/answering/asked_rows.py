"""A row as it is asked, and as it is ready to be answered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.written import Writing
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import AdapterError, AdapterHubError, DataError, is_out_of_memory
from adapterhub_cl.types import Example, Task

Mixture = Mapping[str, float]  # reference → weight; empty is the base alone


@dataclass(frozen=True)
class AskedRow:
    """A row to be answered.

    Attributes:
        task: its prompt format, labels and kind.
        mixture: the adapters that answer; `OneModel` ignores it.
        prompt: token ids of a raw text to continue as it is; empty: the task's prompt is built from the example.
        writes: write an answer, whatever the task's kind.
        emit: receives a written answer piece by piece; see `write_rows`.
        wanted: whether anybody still waits for the answer.
    """

    task: Task
    example: Example
    mixture: Mixture = field(default_factory=dict)
    writing: Writing = field(default_factory=Writing)
    prompt: tuple[int, ...] = ()
    writes: bool = False
    emit: Callable[[str], bool] | None = None
    wanted: Callable[[], bool] = field(default=lambda: True)

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


class Stream:
    """A row's `emit`. When a pass is repeated, pieces that were emitted before are not emitted again."""

    def __init__(self, emit: Callable[[str], bool]) -> None:
        self.emit, self.given, self.at = emit, 0, 0
        self.error: Exception | None = None

    def again(self) -> Stream:
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
class Ready:
    """A row with the token ids of its prompt; `cut`: the input did not fit."""

    index: int
    row: AskedRow
    prompt: tuple[int, ...]
    cut: bool
    writing: Writing
    stream: Stream | None = None

    def checked(self, answer: Answer | Exception, strict: bool) -> Answer | Exception:
        """Its answer with what is known of its prompt; an error where the caller's `emit` failed.

        Args:
            strict: an answer whose confidence is not finite is an error.
        """
        if self.stream is not None and self.stream.error is not None:
            return self.stream.error
        if isinstance(answer, Exception):
            return answer
        if strict and not math.isfinite(answer.confidence):
            return AdapterError(
                f"{' + '.join(self.row.mixture) or 'the base'} gives no finite scores",
                "its weights have diverged: train it again with a lower --learning-rate",
            )
        return answer._replace(truncated=self.cut, prompt_tokens=len(self.prompt))

    def failure(self, error: Exception) -> Exception:
        """What is said where it fails alone."""
        if not is_out_of_memory(error):
            return error
        return AdapterHubError(
            f"not enough memory for one input of {len(self.prompt)} tokens",
            "shorten it, or answer with fewer new tokens",
        )
