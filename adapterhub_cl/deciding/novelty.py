"""Finds inputs of a batch in regions where the batch is dense and the known tasks' samples are not.

For each input the distance to its k-th nearest known sample is divided by that to its k-th nearest other input. Known
samples that were set aside get the same ratio, and an input's p-value is the share of those near the same task with at
least as large a ratio (a conformal p-value; Vovk et al. 2005). Each half of the samples is set aside once, and the two
p-values are averaged. Distances are cosine distances under the covariance within tasks, which is fitted without the
samples that are set aside.

A single input can hardly be distinguished from a known task's if topics overlap; twenty similar ones can. The batch
gives the evidence, so a small one (fewer than `SMALLEST` different texts) gets no p-values.
Results: docs/benchmarks/drift.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import normalize

NEAREST = 3
SHRINK = 0.1  # share of the covariance replaced by its mean variance times I
SMALLEST = 10  # minimum number of different texts in a batch, and of known samples
LEAST_SIDE = 19  # minimum number of samples set aside near a task for p-values as low as 0.05
DIMS = 1024  # wider hidden states are projected at random
MOST = 2000  # inputs used as neighbours; of more inputs, this many evenly spaced ones


@torch.no_grad()
def novelty(texts: Sequence[str], hidden: torch.Tensor, known: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The p-value of each input under the hypothesis that it belongs to a known task, `[n]`.

    Args:
        texts: equal texts count once.
        hidden: pooled hidden states of the texts, `[n, d]`.
        known: task → pooled hidden states of its samples, `[n_samples, d]`.

    Returns:
        None if there are too few inputs or samples.
    """
    first = {text: k for k, text in reversed(list(enumerate(texts)))}
    places = sorted(first.values())
    samples = {task: rows for task, rows in known.items() if len(rows) >= 2}
    if len(places) < SMALLEST or sum(map(len, samples.values())) < 2 * SMALLEST:
        return None
    at = {text: k for k, text in enumerate(texts[place] for place in places)}
    inputs = _projected(hidden[places].double())
    folds = [
        _p_values(
            inputs,
            [_projected(rows[1 - fold :: 2].double()) for rows in samples.values()],
            [_projected(rows[fold::2].double()) for rows in samples.values()],
        )
        for fold in (0, 1)
    ]
    found: torch.Tensor = (folds[0] + folds[1]) / 2
    return found[torch.tensor([at[text] for text in texts])]


def _projected(rows: torch.Tensor) -> torch.Tensor:
    rows = normalize(rows)
    if rows.shape[1] <= DIMS:
        return rows
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(rows.shape[1], DIMS, generator=generator, dtype=torch.float64)
    found: torch.Tensor = rows @ directions / DIMS**0.5
    return found


def _p_values(inputs: torch.Tensor, kept: Sequence[torch.Tensor], aside: Sequence[torch.Tensor]) -> torch.Tensor:
    """P-values of inputs `[n, d]`, from samples used as neighbours and samples set aside, task by task."""
    whole = torch.cat(list(kept))
    mean = whole.mean(0)
    within = torch.cat([rows - rows.mean(0) for rows in kept])
    covariance = within.T @ within / max(1, len(within))
    level = covariance.diagonal().mean().clamp_min(1e-12)
    covariance = (1 - SHRINK) * covariance + SHRINK * level * torch.eye(len(covariance), dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance)

    def seen(rows: torch.Tensor) -> torch.Tensor:
        return normalize(torch.linalg.solve_triangular(factor, (rows - mean).T, upper=False).T)

    references, others, asked = seen(whole), seen(torch.cat(list(aside))), seen(inputs)
    pool = torch.arange(len(asked))
    if len(asked) > MOST:
        pool = torch.linspace(0, len(asked) - 1, MOST).round().long()
    tasks = torch.repeat_interleave(torch.arange(len(kept)), torch.tensor([len(rows) for rows in kept]))
    ratio, near = _ratios(asked, references, asked[pool], tasks, own=pool)
    ratio_aside, near_aside = _ratios(others, references, asked[pool], tasks)
    found = torch.empty(len(asked), dtype=torch.float64)
    for task in sorted(set(near.tolist())):
        compared = ratio_aside[near_aside == task]
        compared = ratio_aside if len(compared) < LEAST_SIDE else compared
        mine = near == task
        above = (compared[None, :] >= ratio[mine][:, None]).sum(1)
        found[mine] = (1 + above.double()) / (len(compared) + 1)
    return found


def _ratios(
    rows: torch.Tensor,
    references: torch.Tensor,
    pool: torch.Tensor,
    tasks: torch.Tensor,
    own: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row the distance to its k-th nearest reference divided by that to its k-th nearest row of `pool`, and
    the task of most of its nearest references.

    Args:
        own: which of the rows are in `pool`; a row is not its own neighbour.
    """
    known = torch.cdist(rows, references)
    other = torch.cdist(rows, pool)
    if own is not None:
        other[own, torch.arange(len(own))] = torch.inf
    k = min(NEAREST, len(references), other.shape[1] - 1)
    far = known.topk(k, dim=1, largest=False)
    ratio = far.values[:, -1] / other.topk(k, dim=1, largest=False).values[:, -1].clamp_min(1e-9)
    most = known.topk(min(5, known.shape[1]), dim=1, largest=False).indices
    return ratio, tasks[most].mode(1).values
