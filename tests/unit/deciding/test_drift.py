"""Drift: clusters that are known in advance, and batches of every awkward size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from adapterhub_cl.deciding.drift import Cluster, Drift, analyse, grouped, standardised
from adapterhub_cl.errors import DataError, UsageError

SIZE = 32


@dataclass(frozen=True)
class Said:
    out_of_distribution: bool
    confidence: float = 0.9
    weights: tuple[tuple[str, float], ...] = ()


def blobs(sizes: Sequence[int], *, apart: float = 4.0, seed: int = 0) -> torch.Tensor:
    """So many rows around each of some centres, which lie about `apart` standard deviations from each other."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(sizes), SIZE, generator=generator) * apart / 8**0.5
    rows = [c + torch.randn(n, SIZE, generator=generator) for c, n in zip(centres, sizes, strict=True)]
    return torch.cat(rows) * torch.linspace(0.1, 5, SIZE) + 3  # columns of different scale


def batch(known: Sequence[int], new: Sequence[int], **more: float) -> tuple[list[str], torch.Tensor, list[Said]]:
    """Inputs of known tasks a, b, …, then of unknown ones."""
    hidden = blobs([*known, *new], **more)  # type: ignore[arg-type]
    names = [chr(97 + i) for i, n in enumerate(known) for _ in range(n)]
    said = [Said(False, 0.9, ((name, 0.9),)) for name in names]
    said += [Said(True, 0.3, (("b", 0.3), ("a", 0.2)))] * sum(new)
    return [f"text {i}" for i in range(len(hidden))], hidden, said


def test_two_new_tasks_come_out_as_two() -> None:
    drift = analyse(*batch([60, 60, 60], [40, 30]), 0.05)
    assert (drift.n, drift.out, drift.tasks) == (250, 70, {"a": 60, "b": 60, "c": 60})
    assert drift.share == 0.28
    assert drift.interval[0] < 0.28 < drift.interval[1]
    assert drift.more_than_expected
    one, two = drift.clusters
    assert one.members == tuple(range(180, 220))
    assert two.members == tuple(range(220, 250))
    assert one.share == 0.16
    assert one.tightness is not None
    assert one.tightness > 0.1
    assert (one.nearest_task, one.confidence) == ("b", pytest.approx(0.3))
    assert drift.proposals == [
        f"cluster {i} looks like a new task: {n} inputs; label them and run: cl-adapter add-task NAME DATA"
        for i, n in ((1, 40), (2, 30))
    ]


def test_one_new_task_comes_out_as_one() -> None:
    drift = analyse(*batch([60, 60], [50]), 0.05)
    assert [len(cluster.members) for cluster in drift.clusters] == [50]
    assert drift.proposals == [
        "this looks like a new task: 50 inputs; label them and run: cl-adapter add-task NAME DATA"
    ]


def test_examples_are_those_nearest_to_the_centre() -> None:
    texts, hidden, said = batch([60], [30])
    hidden[75] = hidden[60:].mean(0)
    (cluster,) = analyse(texts, hidden, said, 0.05).clusters
    assert cluster.examples[0] == "text 75"
    assert len(set(cluster.examples)) == 5


def test_false_alarms_as_many_as_expected_are_nothing_new() -> None:
    texts, hidden, said = batch([100, 100], [])
    alarms = [*range(0, 200, 20)]
    said = [Said(i in alarms, 0.4, row.weights) for i, row in enumerate(said)]
    drift = analyse(texts, hidden, said, 0.05)
    assert drift.p_value == pytest.approx(0.5453, abs=1e-3)  # P(X ≥ 10), X ~ Binomial(200, 0.05)
    assert drift.proposals == ["nothing new"]
    assert not drift.more_than_expected


def test_too_many_false_alarms_are_no_new_task() -> None:
    """More than expected, but scattered among the known tasks."""
    texts, hidden, said = batch([100, 100], [])
    said = [Said(i % 3 == 0, 0.4, row.weights) for i, row in enumerate(said)]
    drift = analyse(texts, hidden, said, 0.05)
    assert drift.more_than_expected
    assert drift.proposals == [
        "67 inputs are unlike what this hub knows, but no 20 of them are similar enough to be one new task: "
        "look at the clusters"
    ]


def test_a_small_cluster_and_one_text_many_times_are_not_proposed() -> None:
    assert [c.new_task for c in analyse(*batch([60], [19]), 0.0).clusters] == [False]
    assert [c.new_task for c in analyse(*batch([60], [20]), 0.0).clusters] == [True]
    texts, hidden, said = batch([60], [1])
    again = 50
    drift = analyse(
        texts + texts[-1:] * again, torch.cat([hidden, hidden[-1:].expand(again, -1)]), said + said[-1:] * again, 0.05
    )
    (cluster,) = drift.clusters
    assert (len(cluster.members), cluster.distinct, cluster.examples) == (51, 1, ("text 60",))
    assert not cluster.new_task
    assert drift.proposals[0].startswith("51 inputs are unlike what this hub knows, but no 20 of them are similar")


def test_nothing_out_of_distribution() -> None:
    drift = analyse(*batch([30, 5], []), 0.05)
    assert (drift.out, drift.share, drift.p_value, drift.clusters) == (0, 0.0, 1.0, ())
    assert drift.tasks == {"a": 30, "b": 5}
    assert drift.proposals == ["nothing new"]


def test_everything_out_of_distribution() -> None:
    drift = analyse(*batch([], [40]), 0.05)
    (cluster,) = drift.clusters
    assert (drift.tasks, cluster.tightness, cluster.share) == ({}, None, 1.0)
    assert cluster.new_task
    assert len(analyse(*batch([], [40, 40]), 0.05).clusters) == 2


def test_without_weights_the_nearest_inputs_tell_the_nearest_task() -> None:
    texts, hidden, said = batch([40, 40], [30])
    hidden[80:] = hidden[40:70] + 0.1 * (hidden[40:70] - hidden[:30])  # beyond b, seen from a
    said = [row if i < 80 else Said(True, 0.1) for i, row in enumerate(said)]
    assert {cluster.nearest_task for cluster in analyse(texts, hidden, said, 0.05).clusters} == {"b"}
    assert analyse(texts[80:], hidden[80:], said[80:], 0.05).clusters[0].nearest_task == ""


@given(
    n=st.sampled_from([1, 2, 3, 10, 40]),
    out=st.floats(0, 1),
    distinct=st.integers(1, 40),
    width=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 99),
)
def test_any_batch_is_answered(n: int, out: float, distinct: int, width: int, seed: int) -> None:
    """Every input out of distribution is in exactly one cluster; the same batch gives the same answer."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(distinct, (n,), generator=generator)
    hidden = torch.randn(distinct, width, generator=generator)[which]
    flags = (torch.rand(n, generator=generator) < out).tolist()
    said = [Said(flag, 0.5, (("a", 0.5),) if i % 2 else ()) for i, flag in enumerate(flags)]
    texts = [f"text {i}" for i in which]
    drift = analyse(texts, hidden, said, 0.1)
    members = sorted(i for cluster in drift.clusters for i in cluster.members)
    assert members == [i for i, flag in enumerate(flags) if flag]
    assert sum(cluster.share for cluster in drift.clusters) == pytest.approx(drift.share)
    assert all(set(c.examples) <= {texts[i] for i in c.members} for c in drift.clusters)
    assert all(c.distinct == len({texts[i] for i in c.members}) for c in drift.clusters)
    assert analyse(texts, hidden, said, 0.1) == drift
    json.dumps(drift.to_json(), allow_nan=False)


def test_the_order_of_the_inputs_does_not_matter() -> None:
    texts, hidden, said = batch([50, 50], [30, 25])
    mixed = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1)).tolist()
    here = analyse(texts, hidden, said, 0.05)
    there = analyse([texts[i] for i in mixed], hidden[mixed], [said[i] for i in mixed], 0.05)

    def groups(drift: Drift, order: Sequence[int]) -> list[set[int]]:
        return [{order[i] for i in cluster.members} for cluster in drift.clusters]

    assert groups(here, range(len(texts))) == groups(there, mixed)


def test_many_rows_join_the_clusters_found_among_some_of_them() -> None:
    sizes = [1500, 1000, 500]
    z = blobs(sizes, apart=6.0).double().numpy()
    labels = grouped(standardised(z, z))
    assert adjusted_rand_score(np.repeat([0, 1, 2], sizes), labels) > 0.99


def test_to_json_says_all() -> None:
    drift = analyse(*batch([60, 60], [40]), 0.05)
    row = json.loads(json.dumps(drift.to_json()))
    assert row.keys() >= {"n", "share", "interval", "expected_share", "p_value", "tasks", "clusters", "proposals"}
    assert (row["out_of_distribution"], row["more_than_expected"]) == (40, True)
    (cluster,) = row["clusters"]
    assert cluster["size"] == len(cluster["members"]) == 40
    assert cluster.keys() == {"size", *Cluster.__dataclass_fields__}


def test_what_cannot_be_analysed_is_refused() -> None:
    texts, hidden, said = batch([5], [5])
    with pytest.raises(DataError, match="no inputs"):
        analyse([], hidden[:0], [], 0.05)
    with pytest.raises(DataError, match="9 texts, hidden states"):
        analyse(texts[1:], hidden, said, 0.05)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="expected share"):
            analyse(texts, hidden, said, share)
    for bad in (float("nan"), float("inf")):
        hidden[3, 1] = bad
        with pytest.raises(DataError, match="of 1 inputs are not finite"):
            analyse(texts, hidden, said, 0.05)


def test_a_new_task_is_proposed_though_the_router_took_half_of_it_for_known() -> None:
    rows = blobs([100, 100, 80])
    samples = {"a": rows[:100], "b": rows[100:200]}
    new = rows[200:]
    said = [Said(True, 0.3, (("a", 0.3),))] * 40 + [Said(False, 0.9, (("a", 0.9),))] * 40
    texts = [f"text {i}" for i in range(80)]
    blind, seeing = analyse(texts, new, said, 0.05), analyse(texts, new, said, 0.05, samples)
    assert [c.new_task for c in blind.clusters] == [False], "the other half passes for a known task"
    (cluster,) = seeing.clusters
    # by their neighbours the other half is found as well
    assert (cluster.new_task, cluster.members, cluster.nearest_task) == (True, tuple(range(80)), "a")
    assert cluster.tightness is not None
    assert cluster.tightness > 0.1


def test_few_samples_are_not_enough_to_compare_with() -> None:
    texts, hidden, said = batch([60, 60], [50])
    few = {"a": hidden[:10], "b": hidden[60:70]}
    assert analyse(texts, hidden, said, 0.05, few) == analyse(texts, hidden, said, 0.05)
