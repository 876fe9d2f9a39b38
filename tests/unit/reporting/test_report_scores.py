"""Which recorded score stands for a version, and the matrix that is made of them."""

from __future__ import annotations

import pytest
from report_support import SHA256, Learn

from adapterhub_cl.evaluation.stages import learned
from adapterhub_cl.registry import Registry
from adapterhub_cl.reporting.gathering import gather
from adapterhub_cl.reporting.recorded_scores import Recorded, matrix
from adapterhub_cl.types import Evaluation


def recorded(hub: Registry) -> Recorded:
    return Recorded(hub.adapters(all_versions=True), hub.evaluations())


@pytest.mark.usefixtures("_torch")
def test_the_matrix_is_the_one_that_eval_matrix_gives(hub: Registry, learn: Learn) -> None:
    from adapterhub_cl.context import Hub
    from adapterhub_cl.evaluation.matrices import hub_matrix

    learn("news", {"news": 0.9})
    learn("mood", {"mood": 0.8, "news": 0.7}, stream={"base": 0.3, "ahead": 0.35})
    learn("news", {"news": 0.4}, status="rejected")
    learn("both", {"mood": 0.5, "news": 0.5}, task="", kind="merged", serve=False)
    learn("topic", {"topic": 0.6, "mood": 0.75})
    learn("news", {"news": 0.85, "mood": 0.7, "topic": 0.65})

    def refuse() -> None:
        raise AssertionError("nothing is to be measured")

    wanted = hub_matrix(Hub(hub, refuse))  # type: ignore[arg-type]
    assert gather(hub).matrix == wanted
    assert wanted.tasks == ("mood", "topic", "news")


@pytest.mark.usefixtures("_torch")
def test_scores_that_were_measured_later_complete_the_matrix(hub: Registry, learn: Learn) -> None:
    from adapterhub_cl.context import Hub
    from adapterhub_cl.evaluation.matrices import hub_matrix

    learn("news", {"news": 0.9})
    newer = learn("mood", {"mood": 0.8}, takes_over=["news"])
    stages = learned(hub.adapters(all_versions=True))
    assert matrix(stages, recorded(hub)).rows[1] == (None, 0.8)  # type: ignore[union-attr]

    hub.add_evaluations(
        newer.ref, [Evaluation("news", "accuracy", 0.5, 2, "replay samples of news@v1", {"sha256": ""})]
    )
    found = gather(hub).matrix
    assert found is not None
    assert found.rows[1] == (0.5, 0.8)
    assert found == hub_matrix(Hub(hub, lambda: None))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("data", "details", "taken"),
    [
        ("news.test.jsonl", {"sha256": SHA256}, True),
        ("news.test.jsonl", {"sha256": "2" * 64}, False),  # the file had other content
        ("elsewhere.jsonl", {"sha256": SHA256}, False),
        ("elsewhere.jsonl", {}, False),
        ("replay samples of mood@v1", {"sha256": ""}, False),  # of another task
    ],
)
def test_scores_on_any_other_data_are_never_taken(
    hub: Registry, learn: Learn, data: str, details: dict[str, str], taken: bool
) -> None:
    learn("news", {"news": 0.9})
    newer = learn("mood", {"mood": 0.8}, takes_over=["news"])
    hub.add_evaluations(newer.ref, [Evaluation("news", "accuracy", 0.5, 10, data, details)])
    found = recorded(hub).score(newer.ref, "news", "accuracy")
    assert (found is not None) == taken
    assert recorded(hub).score(newer.ref, "news", "macro_f1") is None
    assert recorded(hub).score("gone@v1", "news", "accuracy") is None


def test_held_out_data_come_before_replay_samples(hub: Registry, learn: Learn) -> None:
    learn("news", {"news": 0.9})
    newer = learn("mood", {"mood": 0.8}, takes_over=["news"])
    held = Evaluation("news", "accuracy", 0.6, 100, "news.test.jsonl", {"sha256": SHA256})
    samples = Evaluation("news", "accuracy", 0.5, 2, "replay samples of news@v1", {"sha256": ""})
    hub.add_evaluations(newer.ref, [held, samples])
    found = recorded(hub).score(newer.ref, "news", "accuracy")
    assert found is not None
    assert (found.value, found.n) == (0.6, 100)


def test_perplexity_becomes_the_likelihood_of_a_token(hub: Registry, learn: Learn) -> None:
    record = learn("facts", {"facts": 8.0}, metric="perplexity")
    found = recorded(hub).score(record.ref, "facts", "perplexity")
    assert found is not None
    assert (found.value, found.interval) == (0.125, None)


def test_an_empty_hub_has_no_matrix(hub: Registry) -> None:
    assert gather(hub).matrix is None
