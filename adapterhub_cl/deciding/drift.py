"""Drift: are there more unfamiliar inputs than false alarms explain, and is there a new task among them?

An input is unfamiliar if the router, which looks at one input at a time, considers it out of distribution, or if it is
among inputs that are similar to each other and unlike the known tasks' samples (`adapterhub_cl.deciding.novelty`).
The unfamiliar inputs are grouped: their hidden states are standardised by the samples of the known tasks, reduced to 10
principal components and joined by Ward's method; the number of clusters is the one with the highest silhouette, or one
cluster if none exceeds 0.2. Nothing in it is random.

Measured on inputs of cl15 (base tiny NF4, layer 3): 150 draws of one to three unknown tasks, 20 to 95 inputs each, and
ten inputs of three known tasks as false alarms; mean adjusted Rand index in 10 components: Ward 0.63, k-means 0.63 (but
drawn at random), mixture of Gaussians by BIC 0.46, HDBSCAN 0.44, average linkage 0.43. Ward finds the right number of
clusters in 75 % of the draws; in 5 components in 70 % (index 0.64), in 20 in 74 % (0.61).

Proposals, 300 batches on each of two bases behind the analytic router, four or more tasks known by 200 samples each,
one to three unknown ones with 25 to 80 inputs each, alone or among known ones: of the clusters of an unknown task with
20 inputs or more 207 of 213 were tight enough on base tiny and 38 of 62 on a MiniLM; of 43 of false alarms none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub_cl.deciding.novelty import novelty
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.evaluation.metrics import wilson_interval
from adapterhub_cl.showing import card, table

if TYPE_CHECKING:
    import torch

LEVEL = 0.05  # significance level of the test whether there are more than false alarms
UNFAMILIAR = 0.03  # p-value up to which an input is unfamiliar by its neighbours
ALARMS = 0.05  # share of known tasks' inputs that are unfamiliar by that criterion: see docs/benchmarks/drift.md
LARGE = 20  # distinct inputs: enough to label, to train on and to hold out some
TIGHT = 0.01  # minimum mean silhouette among the known tasks' samples and the other clusters
TIGHT_AMONG_INPUTS = 0.03  # the same if the known tasks are represented by the inputs that the router gave them
COMPONENTS = 10
MOST_CLUSTERS = 10
_SPLIT = 0.2  # minimum silhouette for a division into clusters
_SMALLEST = 10  # average number of inputs per cluster
_ENOUGH_KNOWN = 30  # samples or inputs of known tasks needed to standardise
_MOST_GROUPED = 2000  # inputs to cluster; further ones join the nearest cluster
_MOST_COMPARED = 500  # inputs of each group used to measure tightness

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


class Decided(Protocol):
    """The router's decision for one input, as in `adapterhub_cl.routing.Routed`.

    Attributes:
        confidence: in its best task, 0 to 1.
        weights: tasks and their weights; may be empty for an input that is out of distribution.
    """

    @property
    def out_of_distribution(self) -> bool: ...
    @property
    def confidence(self) -> float: ...
    @property
    def weights(self) -> Sequence[tuple[str, float]]: ...


@dataclass(frozen=True)
class Cluster:
    """Out-of-distribution inputs that are similar to each other.

    Attributes:
        members: indices of the inputs, counted from 0; their number is the cluster's size.
        distinct: number of different texts among them.
        share: of all inputs, 0 to 1.
        examples: the texts nearest to the centre, each once.
        tightness: mean silhouette of the members in the standardised hidden states, where the other groups are the
            known tasks and the other clusters: near 1 far from all others, below 0 nearer to another group than to
            their own. None for a single member, or if there is no other group.
        nearest_task: the known task that the router would have chosen for most; empty if it knows none.
        confidence: the router's, averaged over the members.
        new_task: whether it is proposed as a new task.
    """

    members: tuple[int, ...]
    distinct: int
    share: float
    examples: tuple[str, ...]
    tightness: float | None
    nearest_task: str
    confidence: float
    new_task: bool

    def to_json(self) -> dict[str, Any]:
        plain = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return {"size": len(self.members), **plain, "members": list(self.members), "examples": list(self.examples)}


@dataclass(frozen=True)
class Drift:
    """The drift of a batch of inputs.

    Attributes:
        n: number of inputs.
        out: how many are out of distribution: unfamiliar to the router, or by their neighbours.
        interval: Wilson's 95 % interval of their share.
        expected_share: the false alarms: the share of known tasks' inputs that is considered unfamiliar.
        p_value: probability of at least as many from false alarms alone (one-sided binomial test).
        tasks: known task → number of inputs that the router gave it.
        clusters: of the inputs out of distribution, largest first.
    """

    n: int
    out: int
    interval: tuple[float, float]
    expected_share: float
    p_value: float
    tasks: Mapping[str, int]
    clusters: tuple[Cluster, ...]

    @property
    def share(self) -> float:
        """The share of the inputs that are out of distribution."""
        return self.out / self.n

    @property
    def more_than_expected(self) -> bool:
        """Whether false alarms alone do not explain the share (p < 0.05)."""
        return self.p_value < LEVEL

    @property
    def proposals(self) -> list[str]:
        """What to do: a line for each cluster that looks like a new task, or one that says that nothing is new."""
        found = [(number, c) for number, c in enumerate(self.clusters, 1) if c.new_task]
        if found:
            return [
                f"{'this' if len(self.clusters) == 1 else f'cluster {number}'} looks like a new task: "
                f"{len(c.members)} inputs; label them and run: cl-adapter add-task NAME DATA"
                for number, c in found
            ]
        if not self.more_than_expected:
            return ["nothing new"]
        return [
            f"{self.out} inputs are unlike what this hub knows, but no {LARGE} of them are similar enough to be one "
            "new task: look at the clusters"
        ]

    def _repr_html_(self) -> str:
        low, high = self.interval
        share = f"{self.share:.1%} (95 % interval {low:.1%} to {high:.1%}), expected {self.expected_share:.1%}"
        facts = {"inputs": self.n, "out of distribution": self.out, "share": share, "p": f"{self.p_value:.3g}"}
        groups = [(len(c.members), f"{c.share:.1%}", c.nearest_task, " | ".join(c.examples[:3])) for c in self.clusters]
        drawn = table(("inputs", "share", "nearest task", "for example"), groups) if groups else ""
        return card("Drift", {**facts, "": " ".join(self.proposals)}) + drawn

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "out_of_distribution": self.out,
            "share": self.share,
            "interval": list(self.interval),
            "expected_share": self.expected_share,
            "p_value": self.p_value,
            "more_than_expected": self.more_than_expected,
            "tasks": dict(self.tasks),
            "clusters": [cluster.to_json() for cluster in self.clusters],
            "proposals": self.proposals,
        }


def analyse(
    texts: Sequence[str],
    hidden: torch.Tensor,
    routed: Sequence[Decided],
    expected_share: float,
    known: Mapping[str, torch.Tensor] | None = None,
) -> Drift:
    """Compare a batch of inputs with what the router knows.

    A cluster is proposed as a new task if more inputs are out of distribution than false alarms explain (p < 0.05),
    and it has at least 20 different texts. If there are too few samples to look at neighbours, its tightness must also
    be at least 0.01 (0.03 without `known`), unless there is nothing to compare it with.

    Args:
        hidden: mean hidden state of each text at the router's layer, `[n, hidden]`, fp32.
        routed: the router's decision for each text.
        expected_share: share of known tasks' inputs that the router considers unfamiliar, 0 to 1; raised to `ALARMS`
            if neighbours are used.
        known: task → hidden states of its samples, `[n, hidden]`, to compare the clusters with. By default the inputs
            that the router considered known, which may include some of a new task.

    Raises:
        DataError: no inputs, not one row and one decision for each, or hidden states that are not finite.
        UsageError: the expected share is invalid.
    """
    x = _checked(texts, hidden, routed)
    samples = {task: rows.detach().cpu().numpy().astype(np.float64) for task, rows in (known or {}).items()}
    if not 0 <= expected_share < 1:
        raise UsageError(f"the expected share must be at least 0 and below 1, not {expected_share}", "for example 0.05")
    from scipy import stats

    out = np.array([row.out_of_distribution for row in routed], dtype=bool)
    by_neighbours = novelty(texts, hidden.detach().cpu(), known or {})
    if by_neighbours is not None:
        out |= by_neighbours.numpy() <= UNFAMILIAR
        expected_share = max(expected_share, ALARMS)
    chosen = [max(row.weights, key=lambda pair: pair[1], default=("", 0.0))[0] for row in routed]
    count, n = int(out.sum()), len(texts)
    p_value = float(stats.binomtest(count, n, expected_share, alternative="greater").pvalue)
    served = [chosen[i] for i in np.flatnonzero(~out).tolist()]
    tasks = {task: served.count(task) for task in sorted({*served} - {""})}
    clusters: tuple[Cluster, ...] = ()
    if count:
        z, places, tight = _among_known(x, out, chosen, samples)
        tight = -1.0 if by_neighbours is not None else tight  # the neighbours have already shown that it is separate
        clusters = _clusters(texts, z, routed, np.flatnonzero(out), places, tight if p_value < LEVEL else np.inf)
    return Drift(n, count, wilson_interval(count, n), expected_share, p_value, tasks, clusters)


def _checked(texts: Sequence[str], hidden: torch.Tensor, routed: Sequence[Decided]) -> Floats:
    if not texts:
        raise DataError("there are no inputs", "give a file with at least one")
    if hidden.ndim != 2 or not len(texts) == len(hidden) == len(routed):
        shape = list(hidden.shape)
        raise DataError(f"{len(texts)} texts, hidden states {shape}, {len(routed)} answers", "give one for each text")
    x: Floats = hidden.detach().cpu().numpy().astype(np.float64)
    if bad := int((~np.isfinite(x).all(1)).sum()):
        raise DataError(f"the hidden states of {bad} inputs are not finite", "compute them again, in fp32")
    return x


# -- clusters ----------------------------------------------------------------------------------------------------


def _among_known(
    x: Floats, out: NDArray[np.bool_], chosen: Sequence[str], samples: Mapping[str, Floats]
) -> tuple[Floats, dict[str, Ints], float]:
    """The inputs, standardised, followed by the samples; which rows belong to which known task; and how tight a new
    task must be."""
    if sum(map(len, samples.values())) >= _ENOUGH_KNOWN:
        by = np.concatenate(list(samples.values()))
        ends = len(x) + np.cumsum([len(rows) for rows in samples.values()])
        places = {task: np.arange(end - len(samples[task]), end) for task, end in zip(samples, ends, strict=True)}
        return standardised(np.concatenate([x, by]), by), places, TIGHT
    tasks: dict[str, list[int]] = {}
    for i in np.flatnonzero(~out).tolist():
        tasks.setdefault(chosen[i], []).append(i)
    z = standardised(x, x[~out] if (~out).sum() >= _ENOUGH_KNOWN else x)
    return z, {task: np.array(rows) for task, rows in tasks.items()}, TIGHT_AMONG_INPUTS


def _clusters(
    texts: Sequence[str], z: Floats, routed: Sequence[Decided], members: Ints, tasks: Mapping[str, Ints], tight: float
) -> tuple[Cluster, ...]:
    """The clusters of some inputs, largest first.

    Args:
        z: from `_among_known`; the inputs come first.
        members: indices of the inputs to cluster.
        tasks: known task → its rows of `z`.
        tight: minimum tightness of a new task; infinite: nothing is proposed.
    """
    labels = grouped(z[members])
    groups: list[Ints] = [members[labels == label] for label in np.unique(labels)]
    groups.sort(key=lambda group: (-len(group), int(group[0])))
    found = []
    for group in groups:
        tightness = _tightness(z, group, [*(g for g in groups if g is not group), *tasks.values()])
        distance = ((z[group] - z[group].mean(0)) ** 2).sum(1)
        nearest_first = [texts[i] for i in group[np.argsort(distance, kind="stable")].tolist()]
        distinct = len(set(nearest_first))
        found.append(
            Cluster(
                members=tuple(group.tolist()),
                distinct=distinct,
                share=len(group) / len(texts),
                examples=tuple(dict.fromkeys(nearest_first))[:5],
                tightness=tightness,
                nearest_task=_nearest(routed, z, group, tasks),
                confidence=float(np.mean([routed[i].confidence for i in group.tolist()])),
                new_task=distinct >= LARGE and tight < np.inf and (tightness is None or tightness >= tight),
            )
        )
    return tuple(found)


def standardised(x: Floats, by: Floats) -> Floats:
    """Each column minus its mean in `by`, divided by its standard deviation there if that is not 0."""
    spread = by.std(0)
    found: Floats = (x - by.mean(0)) / np.where(spread > 0, spread, 1.0)
    return found


def grouped(z: Floats) -> Ints:
    """The cluster of each row, `[n]`; the module's docstring describes the method."""
    alone = np.zeros(len(z), np.intp)
    some = z if len(z) <= _MOST_GROUPED else z[np.linspace(0, len(z) - 1, _MOST_GROUPED).round().astype(np.intp)]
    distinct = len(np.unique(some, axis=0))
    if distinct < 2 * _SMALLEST:
        return alone
    from scipy.cluster.hierarchy import fcluster, linkage
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    pca = PCA(min(COMPONENTS, len(some) - 1, some.shape[1]), svd_solver="full").fit(some)
    reduced = pca.transform(some)
    tree = linkage(reduced, "ward")
    best, labels = _SPLIT, np.zeros(len(some), np.intp)
    for k in range(2, min(MOST_CLUSTERS, distinct // _SMALLEST) + 1):
        tried = fcluster(tree, k, "maxclust")
        if len(np.unique(tried)) == k and (quality := float(silhouette_score(reduced, tried))) > best:
            best, labels = quality, tried
    if some is z:
        return np.asarray(labels, np.intp)
    names = np.unique(labels)
    centres = np.stack([reduced[labels == name].mean(0) for name in names])
    whole = pca.transform(z)
    nearest = np.stack([((whole - centre) ** 2).sum(1) for centre in centres]).argmin(0)
    return np.asarray(names[nearest], np.intp)


def _tightness(z: Floats, group: Ints, others: Sequence[Ints]) -> float | None:
    """Mean silhouette of a group's rows among the other groups; of very large groups, evenly spaced rows."""
    if not others or len(group) == 1:
        return None
    from sklearn.metrics import silhouette_samples

    some = [_evenly(rows) for rows in (group, *others)]
    labels = np.repeat(np.arange(len(some)), [len(rows) for rows in some])
    return float(silhouette_samples(z[np.concatenate(some)], labels)[: len(some[0])].mean())


def _evenly(rows: Ints) -> Ints:
    if len(rows) <= _MOST_COMPARED:
        return rows
    found: Ints = rows[np.linspace(0, len(rows) - 1, _MOST_COMPARED).round().astype(np.intp)]
    return found


def _nearest(routed: Sequence[Decided], z: Floats, group: Ints, tasks: Mapping[str, Ints]) -> str:
    """The task with the highest weight over a group's rows; if none has a weight, the one with the nearest centre."""
    weights: dict[str, float] = {}
    for i in group.tolist():
        for task, weight in routed[i].weights:
            weights[task] = weights.get(task, 0.0) + weight
    if weights:
        return max(sorted(weights), key=lambda task: weights[task])
    centre = z[group].mean(0)
    far = {task: float(((z[rows].mean(0) - centre) ** 2).sum()) for task, rows in tasks.items() if task}
    return min(sorted(far), key=lambda task: far[task], default="")
