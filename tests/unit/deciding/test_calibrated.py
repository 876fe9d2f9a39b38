"""Decisions: calibrated weights, top-k, the threshold, and the same numbers whatever order tasks came in."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routing_support import TASKS, Cloud, cloud, update

from adapterhub_cl.deciding.calibrated import Calibrated, SampleRows
from adapterhub_cl.deciding.fitting import fit_temperature, fit_threshold, held_out
from adapterhub_cl.errors import AdapterError, BaseModelError, UnknownNameError, UsageError
from adapterhub_cl.routing import build

SMALL = {"analytic": {"features": 48, "ridge": 1.0}, "learned": {"epochs": 3}}
SIZES = {"news": 40, "reviews": 25, "sums": 60, "trivia": 12}


def fitted(name: str = "analytic", tasks: Any = TASKS, *, spread: float = 0.9, **options: Any) -> Calibrated:
    found = Calibrated(build(name, SMALL.get(name, {})), **options)
    for task in tasks:
        found.add_task(task, cloud(task, SIZES[task], spread=spread), update(task))
    found.fit()
    return found


def numbers(calibrated: Calibrated, rows: torch.Tensor) -> list[dict[str, float]]:
    return [dict(routed.weights) for routed in calibrated.route(Cloud(rows), top_k=4)]


@given(st.text(max_size=8), st.integers(0, 300), st.floats(0, 0.9), st.integers(0, 5))
def test_held_out_samples(task: str, count: int, share: float, seed: int) -> None:
    out = held_out(task, count, share, seed)
    assert out == sorted(set(out)) == held_out(task, count, share, seed)
    assert all(0 <= k < count for k in out)
    assert len(out) == (0 if count < 5 or share == 0 else max(1, round(share * count)))


def test_held_out_samples_differ_by_task_and_seed() -> None:
    assert len({tuple(held_out(task, 100, 0.2, seed)) for task in TASKS for seed in (0, 1)}) == 8


@given(st.floats(0.05, 20), st.integers(0, 1000))
def test_the_temperature_that_made_the_labels_is_found(temperature: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4000, 5, generator=draw)
    targets = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
    assert fit_temperature(logits * temperature, targets) == pytest.approx(temperature, rel=0.12)


def test_scores_that_are_always_right_do_not_become_certain() -> None:
    scores = torch.eye(3).repeat(10, 1) * 7
    temperature = fit_temperature(scores, torch.arange(3).repeat(10))
    confidence = (scores / temperature).softmax(1).amax(1)
    assert 0.9 < float(confidence.min()) < 0.99


@pytest.mark.parametrize("scores", [torch.zeros(6, 3), torch.ones(6, 1), torch.zeros(0, 3)])
def test_scores_that_say_nothing_keep_their_temperature(scores: torch.Tensor) -> None:
    assert fit_temperature(scores, torch.zeros(len(scores), dtype=torch.long)) == 1.0


@pytest.mark.parametrize("count", [10, 30, 100, 1000])
def test_the_threshold_costs_about_what_it_may(count: int) -> None:
    """Mean share of fresh samples below it, over many draws: near the 1 % asked for, also from ten samples."""
    draw = torch.Generator().manual_seed(count)
    shares = []
    for _ in range(200):
        threshold = fit_threshold(torch.randn(count, generator=draw), 0.01)
        shares.append(float(torch.special.ndtr(torch.tensor(threshold))))
    assert 0.0005 < sum(shares) / len(shares) < 0.02


def test_the_threshold_of_nothing_is_below_everything() -> None:
    assert fit_threshold(torch.empty(0), 0.01) == -inf
    assert fit_threshold(torch.full((5,), inf), 0.01) == -inf
    assert fit_threshold(torch.arange(9.0), 0.0) == -inf
    assert fit_threshold(torch.ones(20), 0.01) == 1.0


@pytest.mark.parametrize("name", ["analytic", "mahalanobis", "centroid", "learned"])
def test_one_by_one_is_all_at_once(name: str) -> None:
    """Tasks come, go and come back, with decisions in between: temperature, threshold and weights are the same."""
    probe = torch.cat([cloud(task, 5, spread=0.9, seed=7) for task in TASKS])
    stepwise = Calibrated(build(name, SMALL.get(name, {})))
    for task in ("trivia", "news", "sums", "reviews"):
        stepwise.add_task(task, cloud(task, SIZES[task], spread=0.9))
        stepwise.route(Cloud(probe))
    stepwise.remove_task("sums")
    stepwise.route(Cloud(probe))
    stepwise.add_task("sums", cloud("sums", 9, spread=0.9, seed=4))  # other samples, replaced before anything is asked
    stepwise.add_task("sums", cloud("sums", SIZES["sums"], spread=0.9))
    stepwise.fit()
    straight = fitted(name)
    assert stepwise.temperature == pytest.approx(straight.temperature, rel=1e-5)
    assert stepwise.threshold() == pytest.approx(straight.threshold(), rel=1e-5, abs=1e-5)
    for one, other in zip(numbers(stepwise, probe), numbers(straight, probe), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_held_out_samples_are_learned_in_the_end() -> None:
    calibrated = fitted("analytic")
    assert calibrated.router.counts == SIZES  # type: ignore[attr-defined]


def test_calibration_is_on_samples_the_router_did_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated = Calibrated(build("centroid"))
    seen: list[dict[str, int]] = []
    inner = calibrated.router.scores

    def look(inputs: Any) -> torch.Tensor:
        seen.append(dict(calibrated.router.counts))  # type: ignore[attr-defined]
        return inner(inputs)

    monkeypatch.setattr(calibrated.router, "scores", look)
    for task in TASKS:
        calibrated.add_task(task, cloud(task, 50))
    calibrated.fit()
    assert seen == [dict.fromkeys(TASKS, 40)] * 4


def test_forms_of_a_sample_are_held_out_together() -> None:
    calibrated = Calibrated(build("centroid"))
    rows = torch.stack([cloud("news", 20), cloud("news", 20, seed=1)], 1)
    calibrated.add_task("news", rows)
    assert calibrated.samples_of("news") == 20
    assert calibrated.router.counts == {"news": 32}  # type: ignore[attr-defined]
    out = held_out("news", 20, 0.2, 0)
    kept = sorted(set(range(20)) - set(out))
    assert torch.allclose(
        calibrated.router.sums["news"],  # type: ignore[attr-defined]
        calibrated.router.features(rows[kept].flatten(0, 1)).sum(0),  # type: ignore[attr-defined]
    )
    calibrated.fit()
    assert calibrated.router.counts == {"news": 40}  # type: ignore[attr-defined]


def test_each_form_has_a_threshold_of_its_own() -> None:
    """Samples are known as they are and, more familiar, without their noise: each form is measured by its own kind."""
    calibrated = Calibrated(build("centroid"), false_fallbacks=0.05)
    for task in TASKS:
        calibrated.add_task(task, torch.stack([cloud(task, 60, spread=1.5), cloud(task, 60, spread=0.2)], 1))
    calibrated.fit()
    loose, tight = calibrated.threshold(0), calibrated.threshold(1)
    assert tight > loose > -inf
    assert calibrated.threshold(2) == tight
    between = Cloud(torch.cat([cloud(task, 25, spread=1.5, seed=9) for task in TASKS]))
    as_loose, as_tight = (calibrated.route(between, forms=[form] * 100) for form in (0, 1))
    assert [r.familiarity for r in as_loose] == [r.familiarity for r in as_tight]
    assert {r.threshold for r in as_loose} == {loose}
    assert sum(r.out_of_distribution for r in as_loose) < 15
    assert sum(r.out_of_distribution for r in as_tight) > 50
    assert [r.threshold for r in calibrated.route(between)] == [loose] * 100
    again = Calibrated(build("centroid"))
    again.restore(calibrated.router.tasks, calibrated.state(), {})
    assert again.thresholds == calibrated.thresholds


def test_held_out_samples_tell_what_is_taken_for_what() -> None:
    """Of four samples of a task that look like another's, those held out are counted there."""
    calibrated = Calibrated(build("centroid"))
    calibrated.add_task("news", cloud("news", 40, spread=0.1))
    odd = torch.cat([cloud("sums", 36, spread=0.1), cloud("news", 4, spread=0.1, seed=3)])
    calibrated.add_task("sums", odd)
    calibrated.fit()
    wrong = sum(number >= 36 for number in held_out("sums", 40, 0.2, 0))
    assert calibrated.confusion["news"] == {"news": 8}
    assert calibrated.confusion["sums"] == {"sums": 8 - wrong} | ({"news": wrong} if wrong else {})
    assert sum(sum(row.values()) for row in fitted(tasks=["trivia"]).confusion.values()) == 2


def test_decisions() -> None:
    calibrated = fitted(spread=0.4)
    rows = torch.cat([cloud("sums", 20, seed=5), cloud("unheard of", 20)])
    own, strange = (lambda r: (r[:20], r[20:]))(calibrated.route(Cloud(rows), top_k=2))
    for routed in (*own, *strange):
        assert len(routed.weights) == 2
        assert sum(weight for _, weight in routed.weights) == pytest.approx(1.0)
        assert routed.weights[0][1] >= routed.weights[1][1]
        assert 0.25 <= routed.confidence <= 1.0
        assert routed.confidence <= routed.weights[0][1]
        assert routed.threshold == calibrated.threshold()
        assert routed.out_of_distribution == (routed.familiarity < routed.threshold)
    assert all(routed.weights[0][0] == "sums" for routed in own)
    assert sum(routed.out_of_distribution for routed in own) <= 2
    assert sum(routed.out_of_distribution for routed in strange) >= 15


def test_only_some_tasks_may_be_chosen_from() -> None:
    calibrated = fitted(spread=0.4)
    rows = Cloud(cloud("sums", 10, seed=5))
    free = calibrated.route(rows)
    bound = calibrated.route(rows, top_k=4, among=["news", "trivia", "not known"])
    assert all({task for task, _ in routed.weights} == {"news", "trivia"} for routed in bound)
    assert [r.familiarity for r in bound] == [r.familiarity for r in free]
    with pytest.raises(UnknownNameError, match="not known"):
        calibrated.route(rows, among=["not known"])
    with pytest.raises(UnknownNameError, match="none"):
        calibrated.route(rows, among=[])


def test_no_inputs_no_decisions() -> None:
    assert fitted().route(Cloud(torch.empty(0, 12))) == []


def test_one_task_takes_everything() -> None:
    found = fitted(tasks=["news"]).route(Cloud(cloud("news", 8, seed=3)), top_k=3)
    assert all(routed.weights == (("news", 1.0),) and routed.confidence == 1.0 for routed in found)


def test_no_task_is_an_error_that_says_what_to_do() -> None:
    calibrated = fitted(tasks=["news"])
    calibrated.remove_task("news")
    calibrated.fit()
    with pytest.raises(AdapterError, match="knows no task") as error:
        calibrated.route(Cloud(cloud("news", 1)))
    assert "add-task" in error.value.hint


def test_tasks_with_too_few_samples_are_not_held_out() -> None:
    calibrated = Calibrated(build("analytic", SMALL["analytic"]))
    for task in TASKS:
        calibrated.add_task(task, cloud(task, 3))
    (routed,) = calibrated.route(Cloud(cloud("news", 1)))
    assert (calibrated.temperature, calibrated.threshold()) == (1.0, -inf)
    assert routed.weights[0][0] == "news"
    assert not routed.out_of_distribution


@pytest.mark.parametrize("value", [float("nan"), inf])
def test_states_that_are_not_finite_are_refused_with_the_reason(value: float) -> None:
    bad = cloud("news", 6)
    bad[2, 3] = value
    calibrated = fitted()
    with pytest.raises(BaseModelError, match=r"1 of 6 samples of task 'news' are not finite") as error:
        calibrated.add_task("news", bad)
    assert "bf16" in error.value.hint
    assert calibrated.tasks == sorted(TASKS)  # nothing was changed
    with pytest.raises(BaseModelError, match="1 of 6 inputs"):
        calibrated.route(Cloud(bad))


def test_what_cannot_be_asked_for_is_refused() -> None:
    calibrated = fitted()
    with pytest.raises(UsageError, match="0"):
        calibrated.route(Cloud(cloud("news", 1)), top_k=0)
    with pytest.raises(UnknownNameError, match="nws"):
        calibrated.remove_task("nws")
    with pytest.raises(AdapterError, match="no replay samples"):
        calibrated.add_task("empty", None)
    with pytest.raises(UsageError, match="held-out share"):
        Calibrated(build("centroid"), holdout=1.0)


def test_static_keeps_its_weights_and_never_falls_back() -> None:
    calibrated = Calibrated(
        build("static", {"tasks": "news=0.7,sums=0.3"}), see=lambda task, rows: SampleRows(cloud(task, 9))
    )
    for task in TASKS:
        calibrated.add_task(task, cloud(task, 20))
    for routed in calibrated.route(Cloud(cloud("unheard of", 5)), top_k=3):
        assert dict(routed.weights) == pytest.approx({"news": 0.7, "sums": 0.3})
        assert not routed.out_of_distribution
    # Where its tasks may not be chosen, the others share alike.
    (routed,) = calibrated.route(Cloud(cloud("sums", 1)), top_k=2, among=["reviews", "trivia"])
    assert dict(routed.weights) == pytest.approx({"reviews": 0.5, "trivia": 0.5})


@pytest.mark.parametrize("name", ["arrow", "perplexity"])
def test_routers_that_read_no_states_are_calibrated_by_what_they_see(name: str) -> None:
    asked: list[tuple[str, list[int]]] = []

    def see(task: str, rows: Any) -> Cloud:
        asked.append((task, list(rows)))
        return Cloud(cloud(task, 50)[list(rows)])

    calibrated = Calibrated(build(name), see=see)
    for task in TASKS:
        calibrated.add_task(task, torch.zeros(50, 1), update(task))
    calibrated.fit()
    assert asked == [(task, held_out(task, 50, 0.2, 0)) for task in TASKS]
    assert calibrated.temperature != 1.0
    assert calibrated.threshold() > -inf
    unseen = Calibrated(build(name))
    unseen.add_task("news", torch.zeros(50, 1), update("news"))
    unseen.fit()
    assert (unseen.temperature, unseen.threshold()) == (1.0, -inf)


def test_it_comes_back_from_its_state_and_reads_samples_when_they_are_needed() -> None:
    calibrated = fitted("learned")
    asked: list[str] = []

    class Lazy(dict[str, torch.Tensor]):
        def __getitem__(self, task: str) -> torch.Tensor:
            asked.append(task)
            return cloud(task, SIZES[task], spread=0.9)

    back = Calibrated(build("learned", SMALL["learned"]))
    back.restore(calibrated.router.tasks, calibrated.state(), Lazy())
    probe = torch.cat([cloud(task, 5, seed=7) for task in TASKS])
    assert numbers(back, probe) == numbers(calibrated, probe)
    assert asked == []
    for one in (back, calibrated):
        one.remove_task("news")
        one.fit()
    assert sorted(set(asked)) == sorted(TASKS)
    assert len(asked) == 4
    assert back.temperature == pytest.approx(calibrated.temperature)
    assert numbers(back, probe)[0] == pytest.approx(numbers(calibrated, probe)[0])


def test_what_fits_several_tasks_equally_is_of_none() -> None:
    """A text of few words is near to everything: familiar, and yet of no task."""
    calibrated = Calibrated(build("centroid", {}))
    generator = torch.Generator().manual_seed(0)
    places = torch.eye(4, 12)
    for k, task in enumerate("abcd"):
        calibrated.add_task(task, places[k] + 0.3 * torch.randn(40, 12, generator=generator))
    between, clear = places.sum(0, keepdim=True), places[:1]
    (unsure,), (sure,) = calibrated.route(SampleRows(between)), calibrated.route(SampleRows(clear))
    assert unsure.confidence < 0.375
    assert unsure.out_of_distribution
    assert not sure.out_of_distribution
    (asked,) = calibrated.route(SampleRows(between), among=["d", "c", "b", "a"])
    assert asked.out_of_distribution, "no task is left out, as where an engine is asked and nobody names a task"
    named = calibrated.route(SampleRows(between), among=["a", "b"])[0]
    assert not named.out_of_distribution or named.familiarity < named.threshold
