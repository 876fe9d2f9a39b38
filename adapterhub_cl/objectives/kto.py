"""KTO, Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306): single answers that were judged, such
as thumbs up and down, become more or less likely against the reference.

With the reward r = β · (log π − log π_ref), the loss of a wanted answer is weight · (1 − σ(r − z)), that of an unwanted
one weight · (1 − σ(z − r)). z = β · max(0, KL) is the model's divergence from the reference, without gradient: the mean
log-ratio of answers to other questions, over the rows that are computed together. (The answer of the next question is
taken, the last one has the first one's; TRL's KTOTrainer takes the next row's within a batch. It is cut where it would
make a sequence longer than the longest row.) Taken for rows with a boolean judgement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from adapterhub_cl.data.preference_tokens import JudgedTokeniser, PreferenceTokens
from adapterhub_cl.data.tokenise import Tokeniser, Tokens
from adapterhub_cl.objectives._preferring import Preferring
from adapterhub_cl.types import Task


class Objective(Preferring):
    """The loss of each answer against what the model gives away anyhow."""

    def tokeniser(self, tokenizer: Any, task: Task, max_length: int) -> Tokeniser:
        return JudgedTokeniser(tokenizer, task, max_length)

    def paired(self, tokens: Sequence[Tokens]) -> list[Tokens]:
        found = list(tokens)
        judged = [(k, row) for k, row in enumerate(tokens) if isinstance(row, PreferenceTokens)]
        longest = max((len(row.with_answer) for _, row in judged), default=0)
        for (k, row), other in zip(judged, _of_other_questions([row for _, row in judged]), strict=True):
            found[k] = replace(row, other=other[: longest - len(row.prompt)])
        return found

    def preference_losses(
        self, rewards: torch.Tensor, others: torch.Tensor, rows: Sequence[PreferenceTokens]
    ) -> torch.Tensor:
        liked = torch.tensor([bool(row.desirable) for row in rows], device=rewards.device)
        weights = rewards.new_tensor([self.weights[bool(row.desirable)] for row in rows])
        divergence = others.mean().clamp(min=0).detach()
        gain = torch.where(liked, rewards - divergence, divergence - rewards)
        return weights * (1 - torch.sigmoid(gain))


def _of_other_questions(rows: Sequence[PreferenceTokens]) -> list[tuple[int, ...]]:
    """For each row an answer to the next other question: of a pair's two rows the first one has the other pair's first
    answer, the second one its second. If all rows ask the same, the next row's answer."""
    begun = next((k for k in range(1, len(rows)) if rows[k].prompt != rows[k - 1].prompt), 0)
    turned = [*rows[begun:], *rows[:begun]]  # so that no question's rows stand at both ends
    runs = [list(own) for _, own in groupby(turned, key=lambda row: row.prompt)]
    if len(runs) == 1:
        return [row.answer for row in [*rows[1:], *rows[:1]]]
    following = [*runs[1:], *runs[:1]]
    found = [after[k % len(after)].answer for own, after in zip(runs, following, strict=True) for k in range(len(own))]
    return [*found[len(rows) - begun :], *found[: len(rows) - begun]]
