"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.data.tasks import METRICS
from adapterhub_cl.errors import DataError
from adapterhub_cl.evaluation.metrics import (
    PAIRED,
    accuracy,
    classification_report,
    exact_match,
    macro_f1,
    normalise,
    perplexity,
    rouge_l,
    score,
    token_f1,
    wilson_interval,
)
from adapterhub_cl.types import Task

GOLD = ["a", "a", "a", "b", "b", "c"]
PREDICTED = ["a", "a", "b", "b", "a", "b"]
# a: 2 of 3 found, 2 of 3 right; b: 1 of 2 found, 1 of 3 right; c: never found


def test_accuracy_and_macro_f1() -> None:
    assert accuracy(GOLD, PREDICTED) == 3 / 6
    assert macro_f1(GOLD, PREDICTED) == pytest.approx((2 / 3 + 2 / 5 + 0) / 3)
    assert accuracy(["A"], ["a"]) == 0.0


def test_report() -> None:
    report = classification_report(GOLD, PREDICTED, ["c", "b", "a", "never"])
    assert report["labels"] == ["c", "b", "a", "never"]
    assert report["confusion"] == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 2, 0], [0, 0, 0, 0]]
    assert report["classes"]["a"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert report["classes"]["b"] == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "support": 2})
    assert report["classes"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_report_keeps_answers_that_are_no_labels() -> None:
    report = classification_report(["a", "b"], ["a", "what?"], ["a", "b"])
    assert report["labels"] == ["a", "b", "what?"]
    assert report["confusion"] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_exact_match() -> None:
    assert exact_match(["The  Blue Mill", "1843"], ["the blue mill.", "1844"]) == 0.5
    assert normalise(" «Straße»! ") == "strasse"
    assert normalise("C++") == "c++"
    assert normalise("?!") == "?!"  # nothing else to compare


def test_token_f1() -> None:
    # gold: blue mill (articles gone); predicted: old blue mill hill; 2 shared, precision 2/4, recall 2/2
    assert token_f1(["the blue mill"], ["an old blue mill hill!"]) == pytest.approx(2 / 3)
    assert token_f1(["a a b b"], ["b b b"]) == pytest.approx(2 * 2 / (2 + 3))  # words count as often as they come
    assert token_f1(["the"], ["a"]) == 1.0
    assert token_f1(["x"], ["the"]) == 0.0


def test_rouge_l() -> None:
    # longest common subsequence: "the … sat on … mat" = 4 of 5 and 6 words
    assert rouge_l(["the cat sat on mat"], ["The dog sat on a mat."]) == pytest.approx(8 / 11)
    assert rouge_l(["police killed the gunman"], ["the gunman killed police"]) == pytest.approx(4 / 8)
    assert rouge_l(["x y"], [""]) == 0.0


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_rouge_l_is_the_longest_common_subsequence_of_words(gold: list[str], predicted: list[str]) -> None:
    table = [[0] * (len(predicted) + 1) for _ in range(len(gold) + 1)]
    for i, g in enumerate(gold):
        for j, p in enumerate(predicted):
            table[i + 1][j + 1] = table[i][j] + 1 if g == p else max(table[i][j + 1], table[i + 1][j])
    size = len(gold) + len(predicted)
    expected = 2 * table[-1][-1] / size if gold and predicted else float(not size)
    # words of several letters, some sharing all of them: words are compared whole
    words = {"a": "mill", "b": "mills", "c": "liml"}
    pair = (" ".join(words[t] for t in gold), " ".join(words[t] for t in predicted))
    assert rouge_l([pair[0]], [pair[1]]) == pytest.approx(expected)


def test_perplexity() -> None:
    assert perplexity(4 * math.log(8), 4) == pytest.approx(8.0)
    assert perplexity(1e6, 1) == math.inf
    with pytest.raises(DataError, match="no tokens"):
        perplexity(0.0, 0)


def test_wilson_interval() -> None:
    # Wilson's formula by hand for 8 of 10: centre (0.8 + 0.19208) / 1.38416, half 1.96 √(0.016 + 0.009604) / 1.38416
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.71674 - 0.22658, abs=1e-4)
    assert high == pytest.approx(0.71674 + 0.22658, abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
    narrow, wide = wilson_interval(800, 1000), wilson_interval(8, 10)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(DataError, match=f"no interval for {successes} of {n}"):
            wilson_interval(successes, n)


def test_score_gives_every_metric_of_the_kind() -> None:
    choice, free, text = (Task("t", kind) for kind in ("choice", "generation", "text"))
    assert score(choice, ["a", "b"], ["a", "a"]) == pytest.approx({"accuracy": 0.5, "macro_f1": 1 / 3})
    assert score(free, ["a mill"], ["mill"]) == pytest.approx(
        {"exact_match": 0.0, "token_f1": 1.0, "rouge_l": 2 / 3, "strict_match": 0.0}
    )
    assert score(text, [], [], nll_sum=2 * math.log(3), n_tokens=2) == pytest.approx({"perplexity": 3.0})
    assert {*PAIRED, "perplexity", "reward_accuracy"} == {name for names in METRICS.values() for name in names}
    with pytest.raises(DataError, match="scored by its likelihood"):
        score(text, ["a"], ["a"])


@pytest.mark.parametrize("metric", sorted(PAIRED))
def test_pairs_must_match(metric: str) -> None:
    with pytest.raises(DataError, match="1 predictions for 2 examples"):
        PAIRED[metric](["a", "b"], ["a"])
    with pytest.raises(DataError, match="no examples to score"):
        PAIRED[metric]([], [])
    assert PAIRED[metric](["mill", "hill"], ["mill", "hill"]) == 1.0
