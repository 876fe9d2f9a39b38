"""learned: a weight for each layer and adapter, fitted on the parents' replay samples (LoRA soups, CAT; Prabhakar et
al. 2024, arXiv:2410.13025).

ΔW = Σ wᵢ·ΔWᵢ with wᵢ per layer; base and factors stay frozen, so only a few dozen numbers are learned, for which few
samples are enough. In the paper it beats merging with fixed weights by 43 % relative for problems that need two skills
at once. Choose it if there are replay samples: it is the best merge that needs no new factors, and a good start for
`distill`."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.merging import BaseMethod, Layer, Stage
from adapterhub_cl.options import option

if TYPE_CHECKING:
    from adapterhub_cl.merging.factors import Factors


@dataclass(frozen=True)
class Config:
    epochs: int = option(3, "passes over the replay samples of all parents")
    learning_rate: float = option(0.05, "peak of Adam's learning rate, which decays to 0 along a cosine")

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= 1000:
            raise UsageError(f"learned.epochs must be between 1 and 1000, not {self.epochs}", "3 is usual")
        if not 0 < self.learning_rate <= 10:
            raise UsageError(f"learned.learning_rate must be above 0, not {self.learning_rate:g}", "0.05 is usual")


class Method(BaseMethod):
    purpose = "weights for each layer, fitted on the replay samples of all parents"
    reads = "samples"
    Config = Config
    identity_error = 1e-6  # one adapter's weight begins at 1
    order_matters = True  # the batches are numbered adapter by adapter before they are shuffled
    random = True

    def default_weights(self, count: int) -> list[float]:
        return [1.0] * count  # factors for the fitted weights, which start at 1 ÷ count

    def prepare(self, stage: Stage) -> None:
        import torch

        from adapterhub_cl.merging.factors import stacked

        whole = {name: stacked(parts) for name, parts in stage.layers.items()}
        ranks = {name: [part.rank for part in parts] for name, parts in stage.layers.items()}
        count = len(next(iter(ranks.values())))
        self.found = {name: torch.full((count,), 1.0 / count, requires_grad=True) for name in whole}
        optimizer = torch.optim.Adam(self.found.values(), lr=self.config.learning_rate)
        batches = [batch for adapter in range(count) for batch in stage.batches(adapter)]
        total = self.config.epochs * len(batches)
        order = [k for epoch in range(self.config.epochs) for k in _shuffled(len(batches), stage.seed, epoch)]
        losses = []
        with stage.progress("fitting the weights", total) as advance:
            for step, k in enumerate(order):
                gates = {
                    name: weights.repeat_interleave(torch.tensor(ranks[name])) for name, weights in self.found.items()
                }
                with stage.attached(whole, gates):
                    loss = stage.loss(batches[k])
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.param_groups[0]["lr"] = self.config.learning_rate * (1 + math.cos(math.pi * step / total)) / 2
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                advance(1)
        self.losses = [sum(part) / len(part) for part in (losses[: len(batches)], losses[-len(batches) :])]

    def layer(self, layer: Layer) -> Factors:
        from adapterhub_cl.merging.factors import scaled, stacked

        fitted = self.found[layer.name].tolist()
        return stacked([scaled(part, weight) for part, weight in zip(layer.weighted, fitted, strict=True)])

    def summary(self) -> dict[str, Any]:
        first, last = self.losses
        return {
            "loss": [round(first, 4), round(last, 4)],
            "weights": {name: [round(w, 4) for w in found.tolist()] for name, found in self.found.items()},
        }


def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"learned {seed} {epoch}").sample(range(count), count)
