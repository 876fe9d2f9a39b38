"""Exactness: what was learned in any order, with any detours, is what all at once gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routing_support import TASKS, WIDTH, Cloud, cloud, update

from adapterhub_cl.errors import AdapterHubError, UnknownNameError, UsageError
from adapterhub_cl.merging.factors import Factors
from adapterhub_cl.routing import build

# (task, how many samples, whether they go again)
STEPS = st.lists(st.tuples(st.sampled_from(TASKS), st.integers(1, 15), st.booleans()), min_size=1, max_size=8)


def analytic(**options: Any) -> Any:
    return build("analytic", {"features": 40, "ridge": 0.5, **options})


@given(STEPS, st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", ["analytic", "mahalanobis", "centroid"])
def test_any_history_gives_the_weights_of_all_at_once(name: str, steps: list[Any], draw: Any) -> None:
    chunks = [(task, cloud(task, count, seed=k), goes) for k, (task, count, goes) in enumerate(steps)]
    stays = [(task, rows) for task, rows, goes in chunks if not goes] or [("news", cloud("news", 4, seed=77))]
    stepwise, at_once = (
        analytic() if name == "analytic" else build(name),
        analytic() if name == "analytic" else build(name),
    )
    pending = [("learn", task, rows) for task, rows in stays]
    pending += [("learn", task, rows) for task, rows, goes in chunks if goes]
    draw.shuffle(pending)
    for _, task, rows in pending:
        stepwise.learn(task, rows)
    leaving = [(task, rows) for task, rows, goes in chunks if goes]
    draw.shuffle(leaving)
    for task, rows in leaving:
        stepwise.unlearn(task, rows)
    for task in dict.fromkeys(task for task, _ in stays):
        at_once.learn(task, torch.cat([rows for name_, rows in stays if name_ == task]))
    assert sorted(stepwise.tasks) == sorted(at_once.tasks)
    for router in (stepwise, at_once):
        router.solve()
    assert stepwise.counts == at_once.counts
    columns = [stepwise.tasks.index(task) for task in at_once.tasks]
    if name == "analytic":
        apart = (stepwise.weights[:, columns] - at_once.weights).norm() / at_once.weights.norm()
        assert float(apart) < 1e-6
    seen = Cloud(torch.cat([cloud(task, 5, seed=500) for task in TASKS]))
    one, other = stepwise.scores(seen)[:, columns], at_once.scores(seen)
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_analytic_is_ridge_regression() -> None:
    router = analytic()
    parts = [cloud(task, 20) for task in TASKS]
    for task, rows in zip(TASKS, parts, strict=True):
        router.learn(task, rows)
    router.solve()
    features = router.features(torch.cat(parts))
    targets = torch.eye(4, dtype=torch.float64).repeat_interleave(20, 0)
    padded = torch.cat([features, 0.5**0.5 * torch.eye(40, dtype=torch.float64)])
    by_hand = torch.linalg.lstsq(padded, torch.cat([targets, torch.zeros(40, 4, dtype=torch.float64)])).solution
    assert torch.allclose(router.weights, by_hand, atol=1e-9)


def test_a_task_with_few_samples_is_not_drowned() -> None:
    def share(few: int) -> float:
        router = build("analytic", {"features": 64, "ridge": 10.0})
        router.learn("news", cloud("news", 400, spread=1.2))
        router.learn("reviews", cloud("reviews", few, spread=1.2))
        router.solve()
        found = router.scores(Cloud(cloud("reviews", 200, spread=1.2, seed=9))).argmax(1)
        return float((found == 1).double().mean())

    router = build("analytic", {"features": 64, "ridge": 10.0})
    router.learn("news", cloud("news", 400, spread=1.2))
    router.learn("reviews", cloud("reviews", 10, spread=1.2))
    router.solve()
    plain = router.weights / (torch.tensor([205.0, 205.0]) / torch.tensor([400.0, 10.0])).sqrt().double()
    rows = router.features(cloud("reviews", 200, spread=1.2, seed=9))
    assert share(10) > float(((rows @ plain).argmax(1) == 1).double().mean()) + 0.05


def test_mahalanobis_is_the_distance_under_the_shared_covariance() -> None:
    router: Any = build("mahalanobis", {"shrinkage": 0.0})
    parts = [cloud(task, 60) for task in TASKS]
    for task, rows in zip(TASKS, parts, strict=True):
        router.learn(task, rows)
    router.solve()
    units = [router.features(rows) for rows in parts]
    means = torch.stack([rows.mean(0) for rows in units])
    within = torch.cat([rows - rows.mean(0) for rows in units])
    covariance, scarce = within.T @ within / 240, 0.1 * (WIDTH / 240) ** 1.5
    unit = torch.eye(WIDTH, dtype=torch.float64)
    inverse = torch.linalg.inv((1 - scarce) * covariance + (scarce * covariance.diagonal().mean() + 1e-6) * unit)
    probe = cloud("sums", 7, seed=3)
    apart = router.features(probe)[:, None] - means
    by_hand = -0.5 * torch.einsum("nti,ij,ntj->nt", apart, inverse, apart)
    assert torch.allclose(router.scores(Cloud(probe)).double(), by_hand, rtol=1e-4)


@pytest.mark.parametrize("name", ["mahalanobis", "analytic"])
def test_strange_inputs_are_less_familiar(name: str) -> None:
    router: Any = build(name)
    for task in TASKS:
        router.learn(task, cloud(task, 60))
    router.solve()
    own, strange = Cloud(cloud("news", 40, seed=5)), Cloud(cloud("something else", 40))
    known = router.familiarity(own, router.scores(own))
    foreign = router.familiarity(strange, router.scores(strange))
    assert float(known.min()) > float(foreign.max())


def test_one_task_tells_strange_inputs_too() -> None:
    router: Any = build("mahalanobis")
    router.learn("news", cloud("news", 60))
    router.solve()
    own, strange = Cloud(cloud("news", 40, seed=5)), Cloud(cloud("something else", 40))
    known = router.familiarity(own, router.scores(own))
    assert float(known.min()) > float(router.familiarity(strange, router.scores(strange)).max())


def test_wide_states_are_projected() -> None:
    router: Any = build("mahalanobis", {"dims": 5})
    for task in TASKS:
        router.learn(task, cloud(task, 30))
    router.solve()
    assert router.second.shape == (5, 5)
    found = router.scores(Cloud(cloud("sums", 30, seed=4))).argmax(1)
    assert int((found == TASKS.index("sums")).sum()) >= 20  # a guess finds 8


def test_the_common_mean_can_be_taken_off() -> None:
    far = 50 * torch.ones(WIDTH)  # all clouds lie on one side
    plain: Any = build("centroid")
    centred: Any = build("centroid", {"center": True})
    for router in (plain, centred):
        for task in TASKS:
            router.learn(task, cloud(task, 30) + far)
        router.solve()
    seen = Cloud(cloud("sums", 30, seed=4) + far)
    tops = [router.scores(seen).topk(2, 1).values for router in (plain, centred)]
    margins = [float((top[:, 0] - top[:, 1]).mean()) for top in tops]
    assert margins[0] < 0.02
    assert margins[1] > 0.2


@pytest.mark.parametrize("name", ["analytic", "mahalanobis", "centroid", "learned"])
def test_what_was_not_learned_cannot_be_taken_out(name: str) -> None:
    router = build(name)
    router.learn("news", cloud("news", 3))
    with pytest.raises(AdapterHubError, match="know"):
        router.unlearn("news", cloud("news", 4))
    with pytest.raises(AdapterHubError, match="sums"):
        router.unlearn("sums", cloud("sums", 1))
    assert router.tasks == ["news"]


@pytest.mark.parametrize("width", [0, 8])
def test_the_gate_follows_from_the_samples_alone(width: int) -> None:
    def gate(order: list[str], flip: bool) -> Any:
        router = build("learned", {"width": width, "epochs": 3})
        for task in order:
            rows = cloud(task, 60)  # more than one batch
            router.learn(task, rows.flip(0) if flip else rows)
        router.solve()
        return router

    seen = Cloud(torch.cat([cloud(task, 5, seed=8) for task in TASKS]))
    one, other = gate(list(TASKS), False), gate(list(TASKS[::-1]), True)
    assert torch.allclose(one.scores(seen), other.scores(seen).flip(1), atol=1e-6)


def test_arrow_finds_the_direction_that_is_amplified_most() -> None:
    router: Any = build("arrow")
    factors = update("news")
    router.learn("news", factors)
    for layer, factor in factors.items():
        top = torch.linalg.svd(factor.dense()).Vh[0]
        assert float((router.directions["news"][layer] @ top).abs()) == pytest.approx(1.0, abs=1e-5)


def test_arrow_does_not_punish_for_layers_left_alone() -> None:
    router: Any = build("arrow")
    whole = update("news")
    router.learn("all", whole)
    router.learn("same adapter", whole)
    router.learn("one layer", {"q": whole["q"]})
    router.learn("nothing", {"q": Factors(torch.zeros(9, 2), torch.randn(2, WIDTH))})
    seen = Cloud(cloud("news", 6))
    scores = router.scores(seen)
    assert torch.equal(scores[:, 0], scores[:, 1])
    unit = seen.hidden / seen.hidden.norm(dim=1, keepdim=True)
    assert torch.allclose(scores[:, 2], (unit @ router.directions["all"]["q"]).abs(), atol=1e-6)
    assert float(scores[:, 3].abs().max()) == 0.0


def test_arrow_without_any_update_has_no_preference() -> None:
    router: Any = build("arrow")
    router.learn("news", {})
    router.learn("sums", {})
    assert router.scores(Cloud(cloud("news", 3))).tolist() == [[0.0, 0.0]] * 3


def test_static_weights_are_shares() -> None:
    router: Any = build("static", {"tasks": "news=3, sums=1"})
    for task in TASKS:
        router.learn(task, None)
    router.solve()
    chances = router.scores(Cloud(cloud("news", 2))).softmax(1)
    assert torch.allclose(chances, torch.tensor([[0.75, 0.0, 0.25, 0.0]] * 2))
    router.unlearn("sums", None)
    with pytest.raises(UnknownNameError, match="sums"):
        router.solve()


@pytest.mark.parametrize("text", ["news=x", "news=0", "news=-1", "=1", "news,news", "news=nan", "news=inf"])
def test_static_refuses_what_is_no_weight(text: str) -> None:
    with pytest.raises(UsageError, match=r"static\.tasks"):
        build("static", {"tasks": text})


def test_static_must_be_told_a_task() -> None:
    router = build("static")
    router.learn("news", None)
    with pytest.raises(UsageError, match="needs a task"):
        router.solve()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("analytic", {"features": 0}),
        ("analytic", {"ridge": 0}),
        ("analytic", {"ridge": "inf"}),
        ("mahalanobis", {"shrinkage": 1.5}),
        ("mahalanobis", {"dims": 0}),
        ("learned", {"epochs": 0}),
        ("learned", {"width": -1}),
        ("learned", {"learning_rate": 2}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        build(name, options)
