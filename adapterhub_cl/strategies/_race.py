"""A race of starts: the adapter learns from each for some steps, and losses on held-out rows are compared in pairs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


def lists(rows: Sequence[int], batch: int, steps: int, draw: random.Random) -> list[list[int]]:
    """The rows of each of so many steps: passes over all of them in another order each, as a run makes them."""
    drawn: list[int] = []
    while len(drawn) < batch * steps:
        drawn += draw.sample(rows, len(rows))
    return [drawn[k * batch : (k + 1) * batch] for k in range(steps)]


def lead(fresh: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """By how much the mean of `other` is lower than that of `fresh`, row by row, and the standard error of that.

    Args:
        other: may end before `fresh`; then only its rows are compared.
    """
    differences = [a - b for a, b in zip(fresh, other, strict=False)]
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
    """A start in the race: its losses on the held-out rows before and after, and where it stopped.

    Attributes:
        missing: layers of the kin that the new adapter does not have.
    """

    before: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    missing: int = 0
    values: Mapping[str, torch.Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None
    steps: int = 0


def raced(
    stage: Stage,
    starts: Sequence[Kin | None],
    first: Mapping[str, torch.Tensor],
    parts: Sequence[RowsOfRace],
    batches: Sequence[Sequence[Sequence[int]]],
    advance: Any,
) -> list[Runner]:
    """Train every start on the same rows. Of several parts, a start that does not lead after one is given up.

    Args:
        starts: the first is the one that the others must beat.
        first: values of the adapter before any start is put into it.
        batches: of each part, the rows of each step.
    """
    import torch

    found = [Runner() for _ in starts]
    going = list(range(len(starts)))
    for part, steps in zip(parts, batches, strict=True):
        for k in going:
            torch.manual_seed(stage.seed)
            found[k].missing = put(stage, first, starts[k])
            found[k].before += stage.mean_losses(part.held)
            found[k].values = None
            run(stage, found[k], steps, advance, whole=len(parts) > 1)
            found[k].losses += stage.mean_losses(part.held)
        going = [k for k in going if not k or lead(found[0].losses, found[k].losses)[0] > 0]
        if len(going) == 1:
            break
    return found


def run(stage: Stage, runner: Runner, batches: Sequence[Sequence[int]], advance: Any, *, whole: bool = False) -> None:
    """Train on these rows, one step for each list of them, at the run's rate after a short warm-up.

    Args:
        runner: goes on from where it stopped; without `values` it starts from the adapter as it is.
        whole: the steps are all that there will be: the rate rises and falls as the run's.
    """
    import torch

    if runner.values is None or runner.optimizer is None:
        runner.optimizer = torch.optim.AdamW(stage.parameters.values(), lr=stage.rate, weight_decay=0.0)
        runner.steps = 0
    else:
        with torch.no_grad():
            for name, p in stage.parameters.items():
                p.copy_(runner.values[name])
    for step, rows in enumerate(batches, runner.steps):
        for batch in stage.batches(rows, padding=False):
            (stage.loss(batch) * (len(batch.indices) / len(rows))).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(stage.parameters.values()), 1.0)
        for group in runner.optimizer.param_groups:
            group["lr"] = stage.rate_at(step, len(batches)) if whole else stage.rate * min(1.0, (step + 1) / 4)
        runner.optimizer.step()
        runner.optimizer.zero_grad(set_to_none=True)
        advance()
    runner.values = {name: p.detach().clone() for name, p in stage.parameters.items()}
    runner.steps += len(batches)
