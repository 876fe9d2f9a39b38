"""DPO, direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290): the chosen answer of each pair becomes
more likely, against the reference, than the rejected one.

The loss of a pair is −log σ(β · [(log π(chosen) − log π_ref(chosen)) − (log π(rejected) − log π_ref(rejected))]), the
`sigmoid` loss of TRL's DPOTrainer, with the log-probabilities summed over an answer's tokens. Taken for rows with
`chosen` and `rejected`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from adapterhub_cl.data.preference_tokens import PairTokeniser, PreferenceTokens
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.objectives._preferring import Preferring
from adapterhub_cl.types import Task


class Objective(Preferring):
    """The logistic loss of the difference of two rewards."""

    def tokeniser(self, tokenizer: Any, task: Task, max_length: int) -> Tokeniser:
        return PairTokeniser(tokenizer, task, max_length)

    def preference_losses(
        self, rewards: torch.Tensor, others: torch.Tensor, rows: Sequence[PreferenceTokens]
    ) -> torch.Tensor:
        return -logsigmoid(rewards - others)
