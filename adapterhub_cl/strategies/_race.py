"""A race of starts: the adapter learns from each for some steps, and losses on held-out rows are compared in pairs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.strategies import Kin, Stage

if TYPE_CHECKING:
    import torch

FEW = 64  # rows; a quarter of fewer decides nothing
FOLDS = 3
LEAST = 12  # rows; fewer say nothing, however they are divided


@dataclass(frozen=True)
class RowsOfRace:
    """Numbers of rows: those that a race is decided on, and those that are learned in it."""

    held: list[int]
    learned: list[int]


def parted(rows: int, held: int, seed: str) -> list[RowsOfRace]:
    """One part with a quarter of the rows held out, `held` at most. Of few rows, each third is held out in turn.

    Returns:
        none if the rows are too few to say anything.
    """
    order = list(range(rows))
    random.Random(seed).shuffle(order)
    if rows < LEAST:
        return []
    if rows >= FEW:
        most = min(held, rows // 4)
        return [RowsOfRace(order[:most], order[most:])]
    return [RowsOfRace(order[k::FOLDS], [row for at, row in enumerate(order) if at % FOLDS != k]) for k in range(FOLDS)]


def lead(fresh: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """By how much the mean of `other` is lower than that of `fresh`, row by row, and the standard error of that."""
    differences = [a - b for a, b in zip(fresh, other, strict=True)]
    mean = sum(differences) / len(differences)
    spread = sum((d - mean) ** 2 for d in differences) / max(1, len(differences) - 1)
    return mean, float((spread / len(differences)) ** 0.5)


def mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def put(stage: Stage, first: Mapping[str, torch.Tensor], kin: Kin | None) -> int:
    """Set the adapter to its first values, and to those of a kin where one is given.

    Returns:
        layers of the kin that the new adapter does not have.
    """
    import torch

    from adapterhub_cl.adapters.starting import put_factors, put_rows

    with torch.no_grad():
        for name, p in stage.parameters.items():
            p.copy_(first[name])
    if kin is None:
        return 0
    put_rows(stage.model, kin.head)
    return put_factors(stage.model, kin.layers)


@dataclass
class Runner:
    """Where a runner of the race stopped."""

    values: Mapping[str, torch.Tensor]
    optimizer: torch.optim.Optimizer
    steps: int


def run(stage: Stage, batches: Sequence[Sequence[int]], advance: Any, runner: Runner | None = None) -> Runner:
    """Train on these rows, one step for each list of them, at the run's rate after a short warm-up.

    Args:
        runner: goes on from where it stopped; None starts from the adapter as it is.
    """
    import torch

    done = 0
    if runner is None:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(stage.parameters.values(), lr=stage.rate, weight_decay=0.0)
    else:
        optimizer, done = runner.optimizer, runner.steps
        with torch.no_grad():
            for name, p in stage.parameters.items():
                p.copy_(runner.values[name])
    for step, rows in enumerate(batches, done):
        for batch in stage.batches(rows, padding=False):
            (stage.loss(batch) * (len(batch.indices) / len(rows))).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(stage.parameters.values()), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * min(1.0, (step + 1) / 4)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        advance()
    values = {name: p.detach().clone() for name, p in stage.parameters.items()}
    return Runner(values, optimizer, done + len(batches))
