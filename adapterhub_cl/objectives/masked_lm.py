"""Masked language modelling: raw text for encoders, beside the labels of their tasks.

Every id of a text is hidden once and found again from the rest of it; perplexity is the exponential of the mean loss
of a hidden id (the pseudo-perplexity of Salazar et al. 2020, arXiv:1910.14659, with a seventh of the ids hidden at a
time). Rows of text and labelled rows may stand in one batch: an update with raw text keeps its task's replay samples.
The distillation from the model before, which such an update adds to this loss, is the strategy `lwf`. Use it for
encoders whose checkpoint has the head of a masked language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from adapterhub_cl.answering.classifying import NONE
from adapterhub_cl.answering.projection import at_positions
from adapterhub_cl.data.batches import Batch
from adapterhub_cl.data.masked import MaskedTokeniser
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import UsageError
from adapterhub_cl.objectives import sequence_classification
from adapterhub_cl.objectives.sequence_classification import _head
from adapterhub_cl.types import HeadRows, Task


class Objective(sequence_classification.Objective):
    """Hidden tokens found again; labelled rows as in sequence classification."""

    answers_with = ("choice", "text")

    def tokeniser(self, tokenizer: Any, task: Task, max_length: int) -> Tokeniser:
        return MaskedTokeniser(tokenizer, task, max_length)

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits of hidden ids over the vocabulary, of labelled rows over their labels; in row order, one width."""
        head = _head(model)
        head.passed = head.passed_text = None
        if not batch.tasks:
            return self._found(model, batch)
        if all(batch.tasks):
            return super().logits(model, batch)
        kinds = [[k for k, task in enumerate(batch.tasks) if bool(task) == labelled] for labelled in (False, True)]
        text, labelled = (_part(batch, rows) for rows in kinds)
        parts = [self._found(model, text), super().logits(model, labelled)]
        width = max(part.shape[1] for part in parts)
        whole = torch.cat([functional.pad(part, (0, width - part.shape[1]), value=NONE) for part in parts])
        places = [torch.tensor(rows)[part.places[0].cpu()] for rows, part in zip(kinds, (text, labelled), strict=True)]
        return whole[torch.cat(places).argsort(stable=True).to(whole.device)]

    def recalled(self, model: Any, layout: HeadRows) -> list[torch.Tensor] | None:
        text = _head(model).passed_text
        return [*(super().recalled(model, layout) or ()), *([] if text is None else [text])]

    def _found(self, model: Any, batch: Batch) -> torch.Tensor:
        head = _head(model)
        assert head.masked is not None  # only encoders with that head run through this objective
        if hasattr(model, "module"):
            raise UsageError(
                "several processes cannot learn raw text on an encoder", "start it without accelerate launch"
            )
        reader = head.masked()
        with at_positions(reader, *batch.places):
            logits = reader(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        head.passed_text = logits[0].float()
        return head.passed_text


def _part(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch."""
    index = torch.tensor(list(rows), device=batch.input_ids.device)
    length = int(batch.attention_mask[index].sum(1).max())
    tasks = tuple(batch.tasks[row] for row in rows)
    return replace(
        batch,
        input_ids=batch.input_ids[index, :length],
        attention_mask=batch.attention_mask[index, :length],
        labels=batch.labels[index, : max(2, length)],
        indices=tuple(batch.indices[row] for row in rows),
        weights=None if batch.weights is None else batch.weights[index, : max(2, length)],
        tasks=tasks if any(tasks) else (),
    )
