"""Objectives: the loss, the prediction and the metric of each kind of base. One file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from adapterhub_cl.plugins import Room
from adapterhub_cl.types import Example, Task

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch
    from adapterhub_cl.data.tokenise import Tokens

ROOM = Room("adapterhub_cl.objectives", "objective", "Objective")


class BaseObjective(ABC):
    """What a kind of base is trained on, and how it answers.

    Attributes:
        task_type: PEFT's name for it.
        answers_with: task kinds that it can serve.
    """

    task_type: ClassVar[str]
    answers_with: ClassVar[tuple[str, ...]]

    @abstractmethod
    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits where a label is to be predicted, `[n_labels, vocabulary]`, fp32, in row order; with the gradient."""

    @abstractmethod
    def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Loss of each label under `logits`, times its weight, `[n_labels]`."""

    def losses(self, model: Any, batch: Batch) -> torch.Tensor:
        """Loss of each answer token, `[n_answer_tokens]`, fp32, in row order; carries the gradient."""
        return self.losses_of(self.logits(model, batch), batch)

    @abstractmethod
    def perplexities(
        self, model: Any, tokens: Sequence[Tokens], pad_id: int, batch_size: int = 32
    ) -> list[tuple[float, int]]:
        """For each example the sum of its answer's negative log-likelihood (nats) and the number of its tokens."""

    @abstractmethod
    def predict(
        self, model: Any, tokenizer: Any, task: Task, examples: Sequence[Example], **options: Any
    ) -> list[tuple[str, float, dict[str, float]]]:
        """For each example its answer, its confidence (0 to 1) and, for choice tasks, every label's probability."""
