"""How well a linear classifier tells labels apart by vectors, and how well a given one does. Pure functions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch.nn import functional

FOLDS = 4
LEAST = 1e-3  # probability of a label that the rows fitted to did not have


def probe_loss(states: torch.Tensor, labels: Sequence[int]) -> float:
    """Cross entropy (nats a row) of a logistic regression on rows that it was not fitted to: four folds, L2.

    Args:
        states: `[n, hidden]`.
        labels: of each row, a number.
    """
    from sklearn.linear_model import LogisticRegression

    n = len(labels)
    total = 0.0
    for fold in range(min(FOLDS, n)):
        held = [k for k in range(n) if k % FOLDS == fold]
        fitted = [k for k in range(n) if k % FOLDS != fold]
        if not fitted:
            return math.log(max(2, len(set(labels))))
        mean, spread = states[fitted].mean(0), states[fitted].std(0, correction=0).clamp_min(1e-6)
        scaled = ((states - mean) / spread).double().numpy()
        known = [labels[k] for k in fitted]
        if len(set(known)) == 1:
            chances = [{known[0]: 1.0} for _ in held]
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a fit that has not quite converged says enough
                model = LogisticRegression(C=1.0 / states.shape[1], max_iter=300).fit(scaled[fitted], known)
            chances = [
                dict(zip(model.classes_.tolist(), row, strict=True)) for row in model.predict_proba(scaled[held])
            ]
        total -= sum(math.log(max(LEAST, chance.get(labels[k], 0.0))) for k, chance in zip(held, chances, strict=True))
    return total / n


def own_head_loss(states: torch.Tensor, labels: Sequence[int], head: Sequence[tuple[torch.Tensor, float]]) -> float:
    """Cross entropy (nats a row) of a given head.

    Args:
        states: `[n, hidden]`.
        labels: of each row, its place in `head`.
        head: weights `[hidden]` and bias of each label.
    """
    weight, bias = torch.stack([w for w, _ in head]), torch.tensor([b for _, b in head])
    return float(functional.cross_entropy(states @ weight.T + bias, torch.tensor(list(labels))))
