"""A row as the base reads it, with what is learned of it marked: for people to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.types import Task


@dataclass(frozen=True)
class Part:
    """A piece of a row.

    Attributes:
        learned: whether its tokens count in the loss.
    """

    text: str
    learned: bool


def marked(tokenizer: Any, task: Task, tokens: Tokens) -> list[Part]:
    """The parts of a row in their order, special tokens among them.

    Args:
        tokens: the row; of an encoder, the answer is one of the task's labels.
    """
    if tokens.task:
        label = task.labels[tokens.answer[0]] if tokens.answer else ""
        return [Part(tokenizer.decode(tokens.prompt), False), Part(label, True)]
    learned = [False] * len(tokens.prompt) + [True] * len(tokens.answer)
    for start, end in tokens.earlier:
        learned[start:end] = [True] * (end - start)
    for place in tokens.hidden:
        learned[place] = True
    found: list[Part] = []
    begin = 0
    for k in range(1, len(tokens.ids) + 1):
        if k == len(tokens.ids) or learned[k] != learned[begin]:
            found.append(Part(tokenizer.decode(tokens.ids[begin:k]), learned[begin]))
            begin = k
    return found
