"""Herding: examples whose mean stays closest to the mean of all (iCaRL, Rebuffi et al. 2017, algorithm 4).

Uses embeddings of the frozen base, L2-normalised; each answer of a choice-like task has its own mean, and the answers
take turns. The method is greedy, so every prefix of the order is the herding of that size.

Choose it if the samples have to represent the whole task: for evaluation on replay samples, routing and merging.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from adapterhub_cl.replay import BasePolicy, Evidence
from adapterhub_cl.replay._groups import by_answer, few_answers, in_turn
from adapterhub_cl.types import Example

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray


def herd(vectors: NDArray[numpy.float64], size: int) -> list[int]:
    """Rows in herding order, at most `size`.

    Args:
        vectors: `[n, dim]`. The k-th choice makes the mean of the chosen closest to the mean of all (Euclidean).
    """
    import numpy

    mean, total = vectors.mean(axis=0), numpy.zeros(vectors.shape[1])
    squares = (vectors**2).sum(axis=1)
    chosen: list[int] = []
    for k in range(1, min(size, len(vectors)) + 1):
        # ‖mean − (total + v)/k‖² without the terms that are equal for every v, times k²
        distances = squares - 2 * vectors @ (k * mean - total)
        distances[chosen] = numpy.inf
        best = int(distances.argmin())
        chosen.append(best)
        total += vectors[best]
    return chosen


class Policy(BasePolicy):
    """Herding order, per answer if there are few answers."""

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    nested: ClassVar[str] = "answer"

    def select(self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence) -> list[int]:
        if not examples or size == 0:
            return []
        import numpy

        found = numpy.asarray(evidence.embeddings(), dtype=numpy.float64)
        vectors = found / numpy.maximum(numpy.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        groups = by_answer(examples) if few_answers(examples) else [list(range(len(examples)))]
        # shuffled before herding, because the first of equals is taken: so ties are decided at random
        groups = [generator.sample(group, len(group)) for group in groups]
        generator.shuffle(groups)
        return in_turn([[group[k] for k in herd(vectors[group], size)] for group in groups], size)
