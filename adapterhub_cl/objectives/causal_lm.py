"""Causal language modelling: next-token loss on the answer, choice by likelihood, free answers by generation.

The vocabulary projection runs at answer positions only: on a base with 150,000 tokens and a one-word answer that
is most of the memory and much of the time of a stock step. Use it for every decoder-only base.
"""

from __future__ import annotations

from typing import Any

import torch

from adapterhub_cl.answering.chunked_loss import chunked_losses, is_large
from adapterhub_cl.answering.projection import at_positions
from adapterhub_cl.answering.unpadded_attention import inputs_of
from adapterhub_cl.data.batches import Batch
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.objectives._scored import Scored
from adapterhub_cl.types import Task


class Objective(Scored):
    """Next-token prediction on a decoder-only base."""

    task_type = "CAUSAL_LM"
    answers_with = ("choice", "generation", "text")

    def tokeniser(self, tokenizer: Any, task: Task, max_length: int) -> Tokeniser:
        return Tokeniser(tokenizer, task, max_length)

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        inputs, rows, columns = _asked(batch)
        with at_positions(model, rows, columns):
            logits = model(**inputs, use_cache=False).logits
        found: torch.Tensor = logits[0].float()
        return found

    def losses(self, model: Any, batch: Batch) -> torch.Tensor:
        inputs, rows, columns = _asked(batch)
        if is_large(model, len(rows)):
            found = chunked_losses(model, inputs, rows, columns, self.targets(batch))
            if found is not None:
                return self.weighted(found, batch)
        return super().losses(model, batch)


def _asked(batch: Batch) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """The inputs of the model, and the row and column of each position whose next token is learned."""
    rows, columns = batch.places
    if batch.unpadded is None:
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, rows, columns
    columns = batch.unpadded.places[rows, columns]
    return inputs_of(batch.unpadded), torch.zeros_like(columns), columns
