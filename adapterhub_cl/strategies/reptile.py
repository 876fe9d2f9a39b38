"""Reptile (Nichol et al. 2018, arXiv:1803.02999): learns a starting point for the new adapter from the earlier tasks'
replay samples, so that the new task needs few examples.

In each round one earlier task is drawn, the adapter takes a few steps on its samples, and the starting point moves part
of the way to the result. The new task is then learned from that point, in an adapter of its own. The point is stored
with the version, and the next task's rounds start from it.

Choose it for tasks with few examples in a hub that has learned several similar ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy, Stage, memory
from adapterhub_cl.types import Example

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.tokenise import Tokens


@dataclass(frozen=True)
class Config:
    rounds: int = option(20, "number of tasks drawn")
    inner: int = option(4, "steps on each drawn task")
    rows: int = option(8, "samples in each step")
    rate: float = option(2e-3, "learning rate of the inner steps (Adam)")
    move: float = option(0.3, "share of the way that the starting point moves (ε), decaying to 0 over the rounds")

    def __post_init__(self) -> None:
        counts = [f"reptile.{n} must be at least 1" for n in ("rounds", "inner", "rows") if getattr(self, n) < 1]
        if not 0 < self.rate < 1:
            counts.append(f"reptile.rate must be between 0 and 1, not {self.rate:g}")
        if not 0 < self.move <= 1:
            counts.append(f"reptile.move must be above 0 and at most 1, not {self.move:g}")
        if counts:
            raise UsageError("; ".join(counts), "for example --set reptile.rounds=20")


class Strategy(BaseStrategy):
    """A learned starting point."""

    shares = "a starting point learned from earlier tasks' samples"
    reads = "samples"
    form = "fresh"
    of_weights = True
    Config = Config

    def begin(self, stage: Stage) -> None:
        import torch

        self.point: dict[str, torch.Tensor] = {}
        if stage.resumed or not stage.reviewed:
            return
        parameters, config = dict(stage.parameters), self.config
        newest = stage.origins[-1].folder  # tasks are in the order in which they were learned
        for name, value in memory(newest, "reptile").items():
            if ".lora_" in name and name in parameters and parameters[name].shape == value.shape:
                parameters[name].data.copy_(value)
        stage.note(f"reptile: {config.rounds} rounds on {len(stage.reviewed)} earlier tasks")
        draw = random.Random(f"reptile {stage.seed}")
        with torch.random.fork_rng(), stage.progress("rounds of reptile", config.rounds) as advance:
            for k in range(config.rounds):
                start = {name: p.detach().clone() for name, p in parameters.items()}
                self._learn(stage, draw.choice(list(stage.reviewed)), draw)
                move = config.move * (1 - k / config.rounds)
                for name, p in parameters.items():
                    p.data.copy_(start[name] + move * (p.detach() - start[name]))
                advance()
        # An encoder's head has no learned starting point: the next task has its own labels.
        self.point = {name: p.detach().clone() for name, p in parameters.items() if ".lora_" in name}

    def _learn(self, stage: Stage, task: str, draw: random.Random) -> None:
        import torch

        optimizer = torch.optim.Adam(stage.parameters.values(), lr=self.config.rate)
        for _ in range(self.config.inner):
            rows = stage.reviewed[task]
            some = draw.sample(list(rows), min(self.config.rows, len(rows)))
            for batch in stage.batches(some, padding=False):
                stage.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def remember(
        self, stage: Stage, samples: Sequence[Example], tokens: Sequence[Tokens]
    ) -> Mapping[str, torch.Tensor]:
        return self.point

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return dict(self.point), {}

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        self.point = dict(tensors)
