"""The student's loss: α · task loss + KL to each row's own teacher (+ feature loss), as hooks of the training loop."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from adapterhub_cl.data.batches import Batch
from adapterhub_cl.distillation.distill_settings import DistillationSettings
from adapterhub_cl.distillation.features import feature_loss, watched
from adapterhub_cl.distillation.lessons import TeachersAnswers
from adapterhub_cl.distillation.logits import divergence
from adapterhub_cl.strategies import BaseStrategy, Stage


class Student(BaseStrategy):
    """Learns from the teachers' outputs.

    Args:
        answers: the teachers' outputs for every row that the run trains on.
    """

    name = "distillation"

    def __init__(self, settings: DistillationSettings, answers: TeachersAnswers) -> None:
        super().__init__()
        self.settings, self.answers = settings, answers
        self.sums = [0.0, 0.0, 0.0]  # divergence, task loss, batches of the last quarter of the run
        self.watches_layers = bool(settings.layers())
        self._hooks = ExitStack()

    def begin(self, stage: Stage) -> None:
        self.seen = self._hooks.enter_context(watched(stage.model, self.settings.layers()))

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        teacher, wanted = self.answers.look_up(batch)
        apart = divergence(logits, teacher, self.settings.temperature)
        rows, columns = batch.places
        known = torch.nn.functional.cross_entropy(logits, batch.labels[rows, columns + 1])
        # The loop adds the whole task loss; this scales it to its weight.
        total = apart + (self.settings.task_loss - 1.0) * known
        if wanted:
            states = {layer: self.seen[layer][rows, columns] for layer in wanted}
            total = total + self.settings.feature_weight * feature_loss(states, wanted)
        if stage.step >= 0.75 * stage.steps:
            here = (float(apart.detach()), float(known.detach()), 1.0)
            self.sums = [a + b for a, b in zip(self.sums, here, strict=True)]
        return total

    def end(self, stage: Stage) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks from the model."""
        self._hooks.close()

    def summary(self) -> dict[str, Any]:
        apart, known, count = self.sums
        return {"divergence": round(apart / count, 5), "task_loss": round(known / count, 5)} if count else {}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {}, {"sums": self.sums}

    def restore(self, tensors: Any, values: Any) -> None:
        self.sums = list(values["sums"])
