"""The parameters of calibration: which samples are held out, the temperature, the threshold."""

from __future__ import annotations

from hashlib import sha256
from math import exp, inf, log

import torch
from torch.nn.functional import log_softmax

SMALLEST = 5  # minimum number of a task's samples for one to be held out
BODY = 0.2  # share of the held-out samples from which the lower tail of familiarity is extrapolated


def held_out(task: str, count: int, share: float, seed: int) -> list[int]:
    """Indices of a task's held-out samples: a share of them, at least one in five, in ascending order."""
    if count < SMALLEST or share <= 0:
        return []
    digest = sha256(f"{seed}\0{task}\0{count}".encode()).digest()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
    return sorted(order[: max(1, min(round(share * count), count - 1))].tolist())


def fit_temperature(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature that minimises the mean negative log likelihood of softmax(scores ÷ T).

    Targets are smoothed by 1 in n + 1: even if n samples were all right, the next one may be wrong.
    """
    scores = scores.double()
    finite = torch.isfinite(scores)
    if scores.shape[1] < 2 or not len(scores):
        return 1.0
    filled = scores.masked_fill(~finite, 0.0)
    spread = float(scores.amax(1).sub(filled.sum(1) / finite.sum(1)).abs().mean())
    if not 0.0 < spread < inf:
        return 1.0
    smooth = 1.0 / (len(scores) + 1)

    def loss(temperature: float) -> float:
        found = log_softmax(scores / temperature, 1)
        right = found.gather(1, targets[:, None])[:, 0].clamp_min(-1e6)
        even = found.masked_fill(~finite, 0.0).sum(1) / finite.sum(1)
        return -float(((1 - smooth) * right + smooth * even).mean())

    # The loss is convex in 1/T, so it has one minimum in log T: golden section search.
    low, high, ratio = log(spread) - 7.0, log(spread) + 7.0, (5**0.5 - 1) / 2
    for _ in range(50):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(exp(left)) <= loss(exp(right)):
            high = right
        else:
            low = left
    return exp((low + high) / 2)


def fit_threshold(familiarity: torch.Tensor, share: float) -> float:
    """The value below which a share of such samples falls.

    For a share smaller than the samples can show (1 % of forty of them) it follows from an exponential tail, whose
    scale is the mean shortfall of the lowest fifth (peaks over threshold), and is at most the normal distribution's
    prediction limit; it is never above the counted value.
    """
    values = familiarity.double()
    values = values[torch.isfinite(values)]
    if not len(values) or share <= 0:
        return -inf
    counted = float(torch.quantile(values, share))
    body = max(BODY, 2.0 / len(values))
    if share >= body:
        return counted
    edge = float(torch.quantile(values, min(body, 1.0)))
    below = values[values < edge]
    found = min(counted, edge - float((edge - below).mean()) * log(min(body, 1.0) / share)) if len(below) else counted
    if 1 < len(values) < 1 / share:
        spread = float(values.std()) * (1 + 1 / len(values)) ** 0.5
        found = min(found, float(values.mean()) - _student(share, len(values) - 1) * spread)
    return found


def _student(share: float, freedom: int) -> float:
    """Minus the quantile of Student's t (Abramowitz and Stegun 26.7.5), accurate from four degrees of freedom."""
    z = -float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)))
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
