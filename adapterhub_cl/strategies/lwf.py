"""LwF, learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282): on the new task's inputs the model is kept
close to its outputs from before the task.

The loss is the task's plus `alpha` times the divergence from the model as it was when the run began, at temperature
`temperature`. It needs no old data and costs one more forward pass per step. Choose it if no samples may be stored and
the new inputs resemble the old ones: it protects only what the new inputs touch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy, Stage

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch


@dataclass(frozen=True)
class Config:
    alpha: float = option(1.0, "weight of the distillation loss relative to the task's loss")
    temperature: float = option(2.0, "temperature that softens both distributions before they are compared")

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 100:
            raise UsageError(f"lwf.alpha must be between 0 and 100, not {self.alpha:g}", "1 is usual")
        if not 0.1 <= self.temperature <= 100:
            raise UsageError(f"lwf.temperature must be between 0.1 and 100, not {self.temperature:g}", "2 is usual")


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean KL(teacher ‖ student) of rows at a temperature, times its square so that gradients keep their scale
    (Hinton et al. 2015).

    Args:
        student: logits `[n, classes]`, with the gradient.
        teacher: logits `[n, classes]`.
    """
    from torch.nn.functional import kl_div, log_softmax

    ours, theirs = (log_softmax(x.float() / temperature, -1) for x in (student, teacher))
    return kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


class Strategy(BaseStrategy):
    """Keeps the model close to its outputs from before the task."""

    shares = "all weights, kept close to the earlier model's answers on the new inputs"
    Config = Config

    def begin(self, stage: Stage) -> None:
        # Set before a checkpoint is restored, so that a resumed run has the same teacher.
        self.before = {name: p.detach().clone() for name, p in stage.parameters.items()}
        self.knows = stage.parent is not None

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        import torch

        if not self.knows or not self.config.alpha:
            return None
        # For an encoder, the output of the earlier tasks' heads on the new inputs; the new head has no past.
        ours = stage.recalled()
        with torch.no_grad(), swapped(stage.parameters, self.before):
            teacher = stage.logits(batch)
            theirs = stage.recalled()
        pairs = [(logits, teacher)] if ours is None or theirs is None else list(zip(ours, theirs, strict=True))
        if not pairs:
            return None
        found = [distillation(student, before, self.config.temperature) for student, before in pairs]
        return sum(found[1:], start=found[0]) * (float(self.config.alpha) / len(found))


@contextmanager
def swapped(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside the block the parameters have other values. Their own memory is not overwritten, because a later backward
    pass needs it unchanged."""
    kept = {name: p.data for name, p in parameters.items()}
    try:
        for name, p in parameters.items():
            p.data = values[name]
        yield
    finally:
        for name, p in parameters.items():
            p.data = kept[name]
