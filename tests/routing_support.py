"""Tasks as clouds of hidden states, and what a router may see of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adapterhub_cl.merging.factors import Factors

WIDTH = 12
TASKS = ("news", "reviews", "sums", "trivia")


def cloud(task: str, count: int, *, spread: float = 0.4, seed: int = 0) -> torch.Tensor:
    """Samples around a centre that belongs to the task's name, `[count, WIDTH]`."""
    place = torch.Generator().manual_seed(sum(map(ord, task)))
    draw = torch.Generator().manual_seed(seed * 1000 + sum(map(ord, task)))
    return torch.randn(WIDTH, generator=place) + spread * torch.randn(count, WIDTH, generator=draw)


def update(task: str, layers: Sequence[str] = ("q", "v")) -> dict[str, Factors]:
    """ΔW of an adapter that belongs to the task's name."""
    draw = torch.Generator().manual_seed(sum(map(ord, task)))
    return {x: Factors(torch.randn(9, 3, generator=draw), torch.randn(3, WIDTH, generator=draw)) for x in layers}


@dataclass(frozen=True)
class Cloud:
    """Inputs whose hidden states are given; activity takes them for the input of every layer."""

    hidden: torch.Tensor

    @property
    def texts(self) -> Sequence[str]:
        return [f"text {k}" for k in range(len(self.hidden))]

    def activity(self, directions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        unit = self.hidden / self.hidden.norm(dim=1, keepdim=True)
        return torch.stack([(unit @ v.T).abs() for v in directions.values()]).mean(0)

    def losses(self, tasks: Sequence[str]) -> torch.Tensor:
        return torch.stack([(self.hidden - cloud(task, 200).mean(0)).square().mean(1) for task in tasks], 1)
