"""k-center: no part of the data is far from a chosen example (Gonzalez 1985; Sener & Savarese 2018).

Farthest-first traversal on embeddings of the frozen base: it starts nearest to the mean, then always takes the
example farthest from all chosen ones. The largest remaining distance is at most twice the smallest possible one, for
every prefix of the order.

Choose it for varied data where every corner counts, such as generation tasks with many kinds of requests. It takes
outliers early, so clean the data first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from adapterhub_cl.replay import BasePolicy, Evidence
from adapterhub_cl.types import Example

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray


def farthest_first(vectors: NDArray[numpy.float64], size: int) -> list[int]:
    """Rows of `[n, dim]` in farthest-first order (Euclidean), at most `size`; of equals the first is taken."""
    import numpy

    nearest = numpy.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    chosen = [int(nearest.argmin())][:size]
    distances = numpy.full(len(vectors), numpy.inf)
    while len(chosen) < min(size, len(vectors)):
        distances = numpy.minimum(distances, numpy.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
        distances[chosen] = -1.0
        chosen.append(int(distances.argmax()))
    return chosen


class Policy(BasePolicy):
    """Farthest-first order; ties are decided at random."""

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})

    def select(self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence) -> list[int]:
        if not examples or size == 0:
            return []
        import numpy

        order = generator.sample(range(len(examples)), len(examples))
        vectors = numpy.asarray(evidence.embeddings(), dtype=numpy.float64)[order]
        return [order[k] for k in farthest_first(vectors, size)]
