"""Confidence intervals of a drop: did an old task lose more than chance explains?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from adapterhub_cl.errors import DataError

Z = 1.959963984540054  # standard deviations to each side; covers 95 %
SLACK = 1e-9  # that rounding may add


def difference_interval(
    before: float, n_before: int, after: float, n_after: int, correlation: float = 0.0, comparisons: int = 1
) -> tuple[float, float]:
    """95 % interval of the drop before − after of two shares.

    Newcombe 1998 (Statistics in Medicine 17, 873 and 2635), method 10 for independent and for paired shares: Wilson's
    intervals of both, squared and added, less what they have in common. For mean scores that are no counts it is MOVER
    (Zou and Donner 2008).

    Args:
        before: share, 0 to 1.
        n_before: number of examples that `before` was measured on.
        after: share, 0 to 1.
        n_after: number of examples that `after` was measured on.
        correlation: of both scores over the same examples (`paired_correlation`); 0 for independent samples.
        comparisons: so many intervals cover all their drops together in 95 % of cases (Bonferroni).

    Raises:
        DataError: the values are not shares, or were measured on no examples; or the correlation is none.
    """
    if not isinstance(correlation, int | float) or not -1 - SLACK <= correlation <= 1 + SLACK:
        raise DataError(f"{correlation!r} is not a correlation", "it lies between -1 and 1")
    drop, z = before - after, NormalDist().inv_cdf(1 - 0.025 / comparisons)
    low_b, high_b = _wilson(before, n_before, z)
    low_a, high_a = _wilson(after, n_after, z)

    def side(b: float, a: float) -> float:
        return math.sqrt(max(0.0, b * b - 2 * correlation * b * a + a * a))

    return max(-1.0, drop - side(before - low_b, high_a - after)), min(1.0, drop + side(high_b - before, after - low_a))


def paired_correlation(before: Sequence[float], after: Sequence[float]) -> float:
    """Correlation of two versions' scores of the same examples, for `difference_interval`.

    A positive covariance is reduced by Newcombe's continuity correction, 1/(2n). It is divided by the variances that
    Wilson's intervals assume, p(1 − p): graded scores vary less, and their interval is then rather too wide than too
    narrow. 0 if either version has only zeros or ones.

    Raises:
        DataError: no examples, different numbers of them, or scores that are not shares.
    """
    _check_pairs(before, after)
    n = len(before)
    mean_b, mean_a = math.fsum(before) / n, math.fsum(after) / n
    shared = math.fsum((b - mean_b) * (a - mean_a) for b, a in zip(before, after, strict=True)) / n
    assumed = math.sqrt(max(0.0, mean_b * (1 - mean_b) * mean_a * (1 - mean_a)))
    if assumed < SLACK:
        return 0.0
    return max(-1.0, (max(0.0, shared - 1 / (2 * n)) if shared > 0 else shared) / assumed)


def mean_interval(singles: Sequence[tuple[float, tuple[float, float]]]) -> tuple[float, float]:
    """95 % interval of the mean of independent drops, from each one's own (drop, interval).

    Zou and Donner 2008 (MOVER): the distances from the drop to each end, squared and summed, as Newcombe does for two.

    Raises:
        DataError: no drops.
    """
    if not singles:
        raise DataError("no interval for the mean of no drops", "give at least one")
    count = len(singles)
    mean = math.fsum(drop for drop, _ in singles) / count
    below = math.hypot(*(drop - low for drop, (low, _) in singles)) / count
    above = math.hypot(*(high - drop for drop, (_, high) in singles)) / count
    return max(-1.0, mean - below), min(1.0, mean + above)


def paired_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean drop before − after of scores of the same examples.

    Normal approximation on the differences, each in −1 to 1, with a continuity correction of 1/(2n); (0, 0) if no
    example changed, and (−1, 1) for a single example that did, because one example proves nothing.

    Raises:
        DataError: no examples, different numbers of them, or scores that are not shares.
    """
    _check_pairs(before, after)
    drops = [b - a for b, a in zip(before, after, strict=True)]
    n = len(drops)
    if not any(drops):
        return 0.0, 0.0
    if n == 1:
        return -1.0, 1.0
    mean = math.fsum(drops) / n
    variance = math.fsum((drop - mean) ** 2 for drop in drops) / (n - 1)
    half = Z * math.sqrt(variance / n) + 1 / (2 * n)
    return max(-1.0, mean - half), min(1.0, mean + half)


def _wilson(share: float, n: int, z: float) -> tuple[float, float]:
    """Wilson's interval as in `metrics.wilson_interval`, for a share that need not be a count over n (a mean F1)."""
    _check_share(share)
    if n < 1:
        raise DataError(f"no interval for a share of {n} examples", "score at least one example")
    spread = z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _check_pairs(before: Sequence[float], after: Sequence[float]) -> None:
    if len(before) != len(after) or not before:
        raise DataError(f"{len(before)} scores against {len(after)}", "score the same examples with both")
    for score in (*before, *after):
        _check_share(score)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise DataError(f"{share!r} is not a share", "an interval of a drop needs scores between 0 and 1")
