"""What objectives share whose loss is a cross entropy at labelled places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from adapterhub_cl.answering import evaluating
from adapterhub_cl.data.batches import Batch, by_length, collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.objectives import BaseObjective


class Scored(BaseObjective):
    """Cross entropy of logits with the labels of a batch."""

    def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.weighted(functional.cross_entropy(logits, self.targets(batch), reduction="none"), batch)

    @staticmethod
    def targets(batch: Batch) -> torch.Tensor:
        """The labels in row order, `[n]`."""
        rows, columns = batch.places
        return batch.labels[rows, columns + 1]

    @staticmethod
    def weighted(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The losses of labels in row order, `[n]`, each times its weight."""
        rows, columns = batch.places
        return losses if batch.weights is None else losses * batch.weights[rows, columns + 1]

    @torch.no_grad()
    def perplexities(
        self,
        model: Any,
        tokens: Sequence[Tokens],
        pad_id: int,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[float, int]]:
        """See `BaseObjective.perplexities`."""
        found: list[tuple[float, int]] = [(0.0, 0)] * len(tokens)
        with evaluating(model):
            for indices in by_length([len(t) for t in tokens], batch_size):
                batch = collate(tokens, indices, pad_id).to(model.device)
                losses = torch.split(self.losses(model, batch), [len(tokens[i].answer) for i in indices])
                for index, loss in zip(indices, losses, strict=True):
                    found[index] = (float(loss.sum()), loss.numel())
                if progress:
                    progress(len(indices))
        return found
