"""Importance sampling: examples typical of what the adapter learned, corrected for the frequency of each answer.

The target is p(i) ∝ exp(−lossᵢ), the adapter's own probability of the answer (a mean per token); the proposal q(i) is
the frequency of the example's answer in the data, uniform where answers are free. The weights are p/q, normalised to
sum to one (Owen 2013, chapter 9), and the draw is without replacement by exponential keys (Efraimidis & Spirakis
2006): the example with the smallest E/w comes first, E drawn from the standard exponential. Every prefix of the order
is the sample that the same draw gives for a smaller size.

Choose it for data with wrong or odd examples: those have a high loss and are rarely chosen, and frequent answers do
not displace the others.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from adapterhub_cl.replay import BasePolicy, Evidence
from adapterhub_cl.replay._groups import few_answers
from adapterhub_cl.types import Example


def log_weights(losses: Sequence[float], examples: Sequence[Example]) -> list[float]:
    """Logarithms of the self-normalised importance weights; an example with a non-finite loss has weight zero."""
    n = len(examples)
    counts = Counter(example.answer for example in examples) if few_answers(examples) else None
    raw = [
        -loss - math.log(counts[example.answer] / n if counts else 1 / n) if math.isfinite(loss) else -math.inf
        for loss, example in zip(losses, examples, strict=True)
    ]
    top = max(raw, default=0.0)
    if top == -math.inf:
        return [-math.log(n)] * n
    total = top + math.log(sum(math.exp(value - top) for value in raw))
    return [value - total for value in raw]


class Policy(BasePolicy):
    """Weighted sampling without replacement, in order of priority."""

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def select(self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence) -> list[int]:
        if not examples or size == 0:
            return []
        # log of E/w: logarithms keep very small weights distinct
        weights = log_weights(evidence.losses(), examples)
        draws = [-math.log(1.0 - generator.random()) for _ in weights]
        keys = [(math.log(draw) if draw else -math.inf) - w for draw, w in zip(draws, weights, strict=True)]
        return sorted(range(len(examples)), key=keys.__getitem__)[:size]
