"""Sequence classification: the labels of a task are rows of an encoder's head, and the loss is taken over them.

One adapter may have the rows of several tasks. Each row of a batch is judged over the labels of its own task only, so
tasks never compete. A label that is new takes a new row; the old ones stay where they are. Use it for choice tasks on
encoders: one short pass answers, where a causal base scores every label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from adapterhub_cl.answering import evaluating
from adapterhub_cl.bases.encoders import Head, head_of
from adapterhub_cl.data.batches import Batch, by_length, collate
from adapterhub_cl.data.labelled import LabelledTokeniser
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.objectives import Answer
from adapterhub_cl.objectives._scored import Scored
from adapterhub_cl.types import Example, HeadRows, Task

NONE = -1e4  # logit of a label that is not there: its share is 0, and differences of two are finite


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

    @torch.no_grad()
    def predict(
        self,
        model: Any,
        tokenizer: Any,
        task: Task,
        examples: Sequence[Example],
        *,
        max_length: int = 512,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
        **_: Any,
    ) -> list[Answer]:
        """The likeliest label of each example, in the examples' order.

        Raises:
            AdapterError: the adapter has no head for the task.
        """
        if task.kind != "choice":
            raise UsageError(
                f"an encoder answers choice tasks, and {task.name} is a {task.kind} task", "name another --task"
            )
        head = _head(model)
        if task.name not in head.layout:
            known = ", ".join(head.layout)
            raise AdapterError(
                f"no head for the task {task.name}: "
                + (f"this adapter answers {known}" if known else "the base has none"),
                "an encoder answers through an adapter that learned the task: cl-adapter list",
            )
        encode = LabelledTokeniser(tokenizer, task, max_length)
        tokens = [encode.prompt(example) for example in examples]
        found: list[Answer] = [Answer("", 0.0, {})] * len(tokens)
        with evaluating(model):
            for indices in by_length([len(t) for t in tokens], batch_size):
                batch = collate(tokens, indices, tokenizer.pad_token_id).to(model.device)
                whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
                logits = by_labels(whole, head.layout[task.name], task.labels)
                for index, answer in zip(indices, chosen(logits, task.labels), strict=True):
                    found[index] = Answer(*answer, truncated=tokens[index].truncated)
                if progress:
                    progress(len(indices))
        return found


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


def by_labels(whole: torch.Tensor, rows: Any, labels: Sequence[str]) -> torch.Tensor:
    """Logits `[n, labels]` in the order of the labels; `NONE` for those that the head does not have."""
    index = torch.tensor([rows.get(label, 0) for label in labels], device=whole.device)
    there = torch.tensor([label in rows for label in labels], device=whole.device)
    return whole[:, index].masked_fill(~there, NONE)


def chosen(logits: torch.Tensor, labels: Sequence[str]) -> list[tuple[str, float, dict[str, float]]]:
    """The likeliest label of each row, its share, and every label's."""
    found = []
    for row in logits.softmax(-1).tolist():
        best = max(range(len(row)), key=row.__getitem__)
        found.append((labels[best], row[best], dict(zip(labels, row, strict=True))))
    return found


def _head(model: Any) -> Head:
    head = head_of(model)
    assert head is not None  # an encoder is always loaded with one
    return head
