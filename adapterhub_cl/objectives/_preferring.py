"""What the objectives share that learn from preferences: log-probabilities of whole answers against a reference.

The reward of an answer is β · (log π(answer) − log π_ref(answer)), where the reference π_ref is the model as it was
before the training: the adapter that the run continues from, or the base itself under a fresh one. Its
log-probabilities are computed once before the first step, so no second model is held. Each row counts once in the loss
of a step: a pair or a judged answer by its preference loss, an ordinary row (a replay sample) by the mean loss of its
answer's tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from adapterhub_cl.answering import evaluating
from adapterhub_cl.data.batches import Batch, by_length, collate
from adapterhub_cl.data.preference_tokens import PreferenceTokens
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.objectives import causal_lm
from adapterhub_cl.settings import TrainingSettings


class Preferring(causal_lm.Objective):
    """A preference loss on a decoder-only base.

    Args:
        settings: β and the weights; None takes the defaults.
    """

    rate_share = 0.1
    prefers = True

    def __init__(self, settings: TrainingSettings | None = None) -> None:
        settings = settings or TrainingSettings()
        self.beta = settings.beta
        self.ordinary = causal_lm.Objective()
        self.weights = {True: settings.desirable_weight, False: settings.undesirable_weight}

    @abstractmethod
    def preference_losses(
        self, rewards: torch.Tensor, others: torch.Tensor, rows: Sequence[PreferenceTokens]
    ) -> torch.Tensor:
        """The loss of each row, `[rows]`, with the gradient.

        Args:
            rewards: of the answers, `[rows]`: β · (log π − log π_ref).
            others: the same for `PreferenceTokens.other`.
        """

    def counted(self, examples: Sequence[Tokens], indices: Sequence[int]) -> int:
        return len(indices)

    def losses(self, model: Any, batch: Batch) -> torch.Tensor:
        return self._of_rows(self.ordinary.losses(model, replace(batch, weights=None)), model, batch)

    def losses_given(self, logits: torch.Tensor, batch: Batch, model: Any) -> torch.Tensor:
        return self._of_rows(self.losses_of(logits, replace(batch, weights=None)), model, batch)

    def _of_rows(self, tokens: torch.Tensor, model: Any, batch: Batch) -> torch.Tensor:
        """The loss of each example, `[examples]`, from those of all labelled tokens, times the example's weight."""
        rows, _ = batch.places
        summed = tokens.new_zeros(len(batch.labels)).index_add(0, rows, tokens)
        count = len(batch.indices)
        lengths = torch.bincount(rows, minlength=len(summed))[:count].clamp(min=1)
        losses = summed[:count] / lengths
        if batch.judged:
            losses = self._judged(losses, -summed, model, batch)
        if batch.weights is not None:
            losses = losses * batch.weights[:count, -1]  # an example's weight stands in its whole row
        return losses

    def _judged(self, losses: torch.Tensor, likelihoods: torch.Tensor, model: Any, batch: Batch) -> torch.Tensor:
        """The losses with those of preference rows in their places."""
        places = list(batch.judged)
        found = [batch.judged[place] for place in places]
        if batch.beside is None:
            others = likelihoods[len(losses) :]
        else:
            with torch.no_grad():
                unrelated = self.ordinary.losses(model, batch.beside)
                others = unrelated.new_zeros(len(places)).index_add(0, batch.beside.places[0], -unrelated)
        reference = likelihoods.new_tensor([row.reference for row in found])
        at = torch.tensor(places, device=losses.device)
        rewards = self.beta * (likelihoods[at] - reference[:, 0])
        return losses.index_copy(0, at, self.preference_losses(rewards, self.beta * (others - reference[:, 1]), found))

    @torch.no_grad()
    def referred(
        self,
        model: Any,
        tokens: Sequence[Tokens],
        pad_id: int,
        batch_size: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[Tokens]:
        found = self.paired(tokens)
        judged = [k for k, row in enumerate(found) if isinstance(row, PreferenceTokens)]
        asked = [found[k] for k in judged]
        for k, told in zip(judged, self._likelihoods(model, asked, pad_id, batch_size, progress), strict=True):
            found[k] = replace(found[k], reference=told)  # type: ignore[call-arg]
        return found

    def paired(self, tokens: Sequence[Tokens]) -> list[Tokens]:
        """The rows, each with its other answer."""
        return list(tokens)

    def _likelihoods(
        self,
        model: Any,
        rows: Sequence[Any],
        pad_id: int,
        batch_size: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[float, float]]:
        """Log-probabilities (nats) of both answers of preference rows."""
        both = [part for row in rows for part in (row.with_answer, row.with_other)]
        done = None if progress is None else (lambda count: progress(count // 2))
        found = [-total for total, _ in self.ordinary.perplexities(model, both, pad_id, batch_size, done)]
        return list(zip(found[::2], found[1::2], strict=True))

    def perplexities(
        self,
        model: Any,
        tokens: Sequence[Tokens],
        pad_id: int,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[float, int]]:
        plain = [row.with_answer if isinstance(row, PreferenceTokens) else row for row in tokens]
        return self.ordinary.perplexities(model, plain, pad_id, batch_size, progress)

    @torch.no_grad()
    def judged(
        self,
        model: Any,
        tokens: Sequence[Tokens],
        pad_id: int,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        total = 0.0
        with evaluating(model):
            for indices in by_length([len(row) for row in tokens], batch_size):
                total += float(self.losses(model, collate(tokens, indices, pad_id).to(model.device)).sum())
                if progress:
                    progress(len(indices))
        return {"loss": total / max(1, len(tokens))}
