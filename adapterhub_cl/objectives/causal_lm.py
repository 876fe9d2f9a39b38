"""Causal language modelling: next-token loss on the answer, choice by likelihood, free answers by generation.

The vocabulary projection runs at answer positions only: on a base with 150,000 tokens and a one-word answer that
is most of the memory and much of the time of a stock step. Use it for every decoder-only base.
"""

from __future__ import annotations

from typing import Any

import torch

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
        rows, columns = batch.places
        if batch.unpadded is None:
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        else:
            inputs = inputs_of(batch.unpadded)
            columns = batch.unpadded.places[rows, columns]
            rows = torch.zeros_like(columns)
        with at_positions(model, rows, columns):
            logits = model(**inputs, use_cache=False).logits
        found: torch.Tensor = logits[0].float()
        return found
