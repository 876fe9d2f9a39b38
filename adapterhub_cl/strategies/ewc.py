"""EWC, elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796), online (Schwarz et al. 2018,
arXiv:1805.06370), on the LoRA parameters.

After each task the diagonal Fisher information of its answers is added to that of the earlier tasks, decayed by
`decay`; on the next task every parameter is pulled back to its old value in proportion to it. The Fisher is scaled to
a mean of 1, so that `strength` means the same for every base. Choose it if no samples may be stored and the adapter's
size must stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy, Stage, memory
from adapterhub_cl.types import Example

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch
    from adapterhub_cl.data.tokenise import Tokens


@dataclass(frozen=True)
class Config:
    strength: float = option(0.1, "weight of the pull back to the old values (λ)")
    decay: float = option(0.9, "factor for an older task's Fisher after each further task (γ)")
    examples: int = option(128, "examples used to estimate the Fisher")

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise UsageError(f"ewc.strength must be at least 0, not {self.strength:g}", "0.1 is usual")
        if not 0 <= self.decay <= 1:
            raise UsageError(f"ewc.decay must be between 0 and 1, not {self.decay:g}", "0.9 is usual")
        if self.examples < 1:
            raise UsageError(f"ewc.examples must be at least 1, not {self.examples}", "128 is usual")


def _grown(fisher: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Zero-padded for an encoder's head, which has a row more for each new label that nothing protects yet."""
    whole = fisher.new_zeros(like.shape, device=like.device)
    whole[: fisher.shape[0]] = fisher
    return whole


class Strategy(BaseStrategy):
    """Protects important weights."""

    shares = "all weights, each kept near its old value as far as earlier tasks need it"
    form = "continued"
    reads_logits = False
    of_weights = True
    Config = Config

    def begin(self, stage: Stage) -> None:
        found = memory(stage.parent, "ewc")
        self.fisher = {n: _grown(f, stage.parameters[n]) for n, f in found.items() if n in stage.parameters}
        self.old = {name: stage.parameters[name].detach().clone() for name in self.fisher}

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        if not self.fisher or not self.config.strength:
            return None
        pulls = [(f * (stage.parameters[name] - self.old[name]) ** 2).sum() for name, f in self.fisher.items()]
        return sum(pulls[1:], start=pulls[0]) * (0.5 * float(self.config.strength))

    def remember(
        self, stage: Stage, samples: Sequence[Example], tokens: Sequence[Tokens]
    ) -> Mapping[str, torch.Tensor]:
        new = self._fisher(stage)
        return {n: f + self.config.decay * self.fisher[n] if n in self.fisher else f for n, f in new.items()}

    def _fisher(self, stage: Stage) -> dict[str, torch.Tensor]:
        """Mean squared gradient of single examples' losses, scaled to a mean of 1 over all parameters."""
        import random

        import torch

        rows = list(range(stage.fresh))
        rows = random.Random(f"fisher {stage.seed}").sample(rows, min(self.config.examples, len(rows)))
        sums = {name: torch.zeros_like(p) for name, p in stage.parameters.items()}
        with stage.progress("estimating importance (ewc)", len(rows)) as advance:
            for row in rows:
                for batch in stage.batches([row]):
                    loss = stage.loss(batch)
                    gradients = torch.autograd.grad(loss, list(stage.parameters.values()), allow_unused=True)
                    for name, gradient in zip(stage.parameters, gradients, strict=True):
                        if gradient is not None:
                            sums[name] += gradient.detach() ** 2
                advance()
        count = sum(s.numel() for s in sums.values())
        mean = sum(float(s.sum()) for s in sums.values()) / count
        return {name: s / max(mean, 1e-30) for name, s in sums.items()}
