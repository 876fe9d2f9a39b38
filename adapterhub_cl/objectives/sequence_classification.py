"""Sequence classification: the labels of a task are rows of an encoder's head, and the loss is taken over them.

One adapter may have the rows of several tasks. Each row of a batch is judged over the labels of its own task only, so
tasks never compete. A label that is new takes a new row; the old ones stay where they are. Use it for choice tasks on
encoders: one short pass answers, where a causal base scores every label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from adapterhub_cl.answering.classifying import NONE
from adapterhub_cl.bases.encoders import Head, head_of
from adapterhub_cl.data.batches import Batch
from adapterhub_cl.data.labelled import LabelledTokeniser
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import UsageError
from adapterhub_cl.objectives._scored import Scored
from adapterhub_cl.types import HeadRows, Task


class Objective(Scored):
    """Labels of tasks as rows of one linear layer."""

    task_type = "SEQ_CLS"
    answers_with: ClassVar[tuple[str, ...]] = ("choice",)
    writes = False

    def tokeniser(self, tokenizer: Any, task: Task, max_length: int) -> Tokeniser:
        """Raises UsageError for what an encoder cannot learn or answer."""
        if task.kind != "choice":
            raise UsageError(
                f"an encoder without the head of a masked language model cannot read {task.name}: it is a {task.kind} "
                "task",
                "use examples whose answers are labels, or another base",
            )
        return LabelledTokeniser(tokenizer, task, max_length)

    def knows(self, model: Any, task: Task) -> bool:
        return task.kind != "choice" or task.name in _head(model).layout

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits of each row's own labels, `[rows, most labels]`: column k is the k-th label of the row's task, and
        beyond them all is `NONE`; the width is that of the head's largest task."""
        head = _head(model)
        whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
        head.passed = whole
        return own_labels(whole, head, batch.tasks)

    def recalled(self, model: Any, layout: HeadRows) -> list[torch.Tensor] | None:
        head = _head(model)
        if head.passed is None:
            return []
        rows = [[head.layout[task][label] for label in own] for task, own in layout.items() if task in head.layout]
        return [head.passed[:, own] for own in rows]


def own_labels(whole: torch.Tensor, head: Head, tasks: Sequence[str]) -> torch.Tensor:
    """Each row's logits over the labels of its own task.

    Args:
        whole: `[rows, head rows]`.

    Returns:
        `[rows, most labels]`; what is beyond a task's labels is `NONE`.
    """
    places = [list(head.layout[task].values()) for task in tasks]
    most = max(map(len, head.layout.values()))
    index = torch.tensor([own + [0] * (most - len(own)) for own in places], device=whole.device)
    real = torch.tensor([[k < len(own) for k in range(most)] for own in places], device=whole.device)
    return whole.gather(1, index).masked_fill(~real, NONE)


def _head(model: Any) -> Head:
    head = head_of(model)
    assert head is not None  # an encoder is always loaded with one
    return head
