"""The gate's decision, by hand-worked cases."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from adapterhub_cl.evaluation.gate import Effect, as_share, decide, refusal_of


def effect(before: float, after: float, n: int = 1000, task: str = "news") -> Effect:
    return Effect(task, "accuracy", before, after, n, "test.jsonl", "news@v1")


@pytest.mark.parametrize(
    ("before", "after", "n", "limit", "passed"),
    [
        (0.90, 0.90, 1000, 0.02, True),
        (0.90, 0.95, 1000, 0.0, True),
        (0.90, 0.80, 1000, 0.02, False),
        (0.90, 0.80, 1000, 0.2, True),  # within the limit
        (0.90, 0.80, 20, 0.02, True),  # over the limit, yet no more than chance explains
        (0.90, 0.20, 20, 0.02, False),
        (0.90, 0.0, 1000, 1.0, True),
    ],
)
def test_a_drop_must_be_over_the_limit_and_over_chance(
    before: float, after: float, n: int, limit: float, passed: bool
) -> None:
    assert decide([effect(before, after, n)], limit).passed is passed


def test_over_needs_both() -> None:
    assert effect(0.8, 0.6, 75).over(0.1)
    assert not effect(0.8, 0.6, 75).over(0.25), "within the limit"
    assert not effect(0.8, 0.6, 10).over(0.1), "too few examples"
    assert not effect(0.6, 0.8, 500).over(0.0), "a gain"
    assert not effect(0.6, 0.6, 500).over(0.0)


def test_answers_to_the_same_questions_are_compared_in_pairs() -> None:
    assert decide([effect(0.9, 0.84, 200)], 0.02).passed, "of independent samples, this may be chance"
    paired = decide([replace(effect(0.9, 0.84, 200), correlation=0.741)], 0.02)
    assert not paired.passed
    assert paired.to_json()["effects"][0]["interval"] == pytest.approx([0.0259, 0.0992], abs=2e-4)
    assert refusal_of(json.loads(json.dumps(paired.to_log()))).message("a@v1") == paired.message("a@v1")


def test_of_many_tasks_one_may_look_worse_by_chance() -> None:
    worse = replace(effect(0.9, 0.84, 100), correlation=0.75)
    same = [effect(0.9, 0.9, 100, f"t{k}") for k in range(11)]
    assert not decide([worse], 0.02).passed
    assert decide([worse, *same], 0.02).passed
    assert decide([worse, *same], 0.02).within_chance == (worse.within_chance(0.02),)
    assert not decide([effect(0.9, 0.6, 100), *same], 0.02).passed


def test_the_message_names_the_tasks_and_the_drops() -> None:
    decision = decide([effect(0.9, 0.5), effect(0.8, 0.79, task="mail"), effect(0.9, 0.1, task="slang")], 0.02)
    assert [e.task for e in decision.refused] == ["slang", "news"]
    message = decision.message("both@v1")
    assert "both@v1" in message
    assert "slang 0.900 → 0.100 (−0.800, n 1000)" in message
    assert "mail" not in message


def test_it_goes_through_json() -> None:
    row = effect(0.9, 0.5).to_json()
    assert row["drop"] == pytest.approx(0.4)
    assert row["interval"][0] < 0.4 < row["interval"][1]
    assert Effect.from_json(row) == effect(0.9, 0.5)
    assert decide([effect(0.9, 0.5)], 0.02).to_json()["passed"] is False


def test_a_refusal_goes_through_the_log() -> None:
    decision = decide([effect(0.9, 0.5), effect(0.8, 0.79, task="mail")], 0.02)
    logged = json.loads(json.dumps(decision.to_log()))
    assert [row["task"] for row in logged["refused"]] == ["news"], "what passed was not refused"
    again = refusal_of(logged)
    assert again.message("both@v1") == decision.message("both@v1")
    assert (again.limit, again.passed) == (0.02, False)


def test_perplexity_becomes_a_share() -> None:
    assert as_share("perplexity", 4.0) == 0.25
    assert as_share("perplexity", 0.5) == 1.0
    assert as_share("accuracy", 0.5) == 0.5


SMALL = [effect(0.85, 0.73, 60, "a"), effect(0.8, 0.7, 40, "b"), effect(0.9, 0.78, 60, "c"), effect(0.7, 0.56, 80, "d")]


def test_drops_that_chance_explains_one_by_one_do_not_pass_together() -> None:
    for one in SMALL:
        assert decide([one], 0.02).passed
        assert decide([one], 0.02).within_chance
    decision = decide(SMALL, 0.02)
    assert not decision.passed
    assert decision.refused == ()
    assert decision.blamed == tuple(SMALL)
    assert decision.within_chance == (), "it is refused: nothing is said to pass"
    told = decision.message("new@v1")
    assert told == "the gate refused new@v1: 4 tasks drop by 0.120 on average (95 % interval 0.04 to 0.19), above 0.02"
    assert decide(SMALL, 0.13).passed, "the mean is within the limit"
    assert decide([*SMALL, effect(0.5, 0.9, 60, "e")], 0.02).passed, "what one task gains counts too"


def test_the_joint_judgement_goes_through_json_and_the_log() -> None:
    decision = decide(SMALL, 0.02)
    row = json.loads(json.dumps(decision.to_json()))
    assert (row["passed"], row["together"]["tasks"], row["together"]["drop"]) == (False, 4, pytest.approx(0.12))
    assert "together" not in decide(SMALL[:1], 0.02).to_json()
    logged = json.loads(json.dumps(decision.to_log()))
    assert logged["together"] == row["together"]
    again = refusal_of(logged)
    assert (again.passed, again.message("x@v1")) == (False, decision.message("x@v1"))
    old = {key: value for key, value in logged.items() if key != "together"}
    assert refusal_of(old).message("x@v1") == decision.message("x@v1"), "older logs do not have it"
