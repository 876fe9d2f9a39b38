"""Metrics as pure functions of texts and numbers. All are shares between 0 and 1, except perplexity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from adapterhub_cl.data.tasks import METRICS
from adapterhub_cl.errors import DataError
from adapterhub_cl.evaluation.words import normalise, words
from adapterhub_cl.types import Evaluation, Task

MOST_ROW_SCORES = 5_000  # stored with a score: with more rows an interval of independent samples is narrow as well


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of predictions that equal the gold label exactly.

    Raises:
        DataError: no examples, or not one prediction for each (the same for all metrics of pairs).
    """
    return _mean(gold, predicted, lambda g, p: float(g == p))


def macro_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Unweighted mean of F1 over the classes that occur in `gold` or `predicted`."""
    _check(gold, predicted)
    from sklearn.metrics import f1_score

    return float(f1_score(list(gold), list(predicted), average="macro", zero_division=0))


def classification_report(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Per-class scores and the confusion matrix.

    Returns:
        `classes`: label → `precision`, `recall`, `f1`, `support` (a count); `labels`: the order of the matrix, first
        the task's labels, then any other answers; `confusion`: counts, [gold][predicted].
    """
    _check(gold, predicted)
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    known = set(labels)
    order = [*labels, *sorted({*gold, *predicted} - known)]
    scores = precision_recall_fscore_support(list(gold), list(predicted), labels=order, zero_division=0)
    classes = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, p, r, f, n in zip(order, *scores, strict=True)
    }
    matrix = confusion_matrix(list(gold), list(predicted), labels=order)
    return {"classes": classes, "labels": order, "confusion": [[int(n) for n in row] for row in matrix]}


def exact_match(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of predictions that equal the gold answer, ignoring case, spaces, quotes around it and sentence marks after
    it; see `words.normalise`."""
    return _mean(gold, predicted, lambda g, p: float(normalise(g) == normalise(p)))


def strict_match(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of predictions that equal the gold answer exactly, ignoring surrounding spaces."""
    return _mean(gold, predicted, lambda g, p: float(g.strip() == p.strip()))


def token_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean F1 of the words shared with the gold answer, as in SQuAD: ignores case, punctuation and articles. For
    numbers and scripts without spaces see `adapterhub_cl.evaluation.words`."""
    return _mean(gold, predicted, _pair_f1)


def rouge_l(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure: the longest common subsequence of words, without case and punctuation."""
    return _mean(gold, predicted, _pair_rouge)


def perplexity(nll_sum: float, n_tokens: int) -> float:
    """exp of the mean negative log-likelihood (nats) of a token; infinite if that overflows.

    Raises:
        DataError: there are no tokens.
    """
    if n_tokens < 1:
        raise DataError("perplexity of no tokens", "give texts that are not empty")
    try:
        return math.exp(nll_sum / n_tokens)
    except OverflowError:
        return math.inf


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Args:
        successes: count, 0 to `n`.
        n: count of trials.
        z: standard deviations to each side; 1.96 covers 95 %.

    Raises:
        DataError: `n` is 0, or `successes` is not between 0 and `n`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"no interval for {successes} of {n}", "score at least one example")
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def score(
    task: Task,
    gold: Sequence[str],
    predicted: Sequence[str],
    *,
    references: Sequence[Sequence[str]] = (),
    nll_sum: float | None = None,
    n_tokens: int | None = None,
) -> dict[str, float]:
    """All metrics of the task's kind that compare answers: name → value.

    Args:
        task: its kind determines the metrics.
        gold: the right answers; ignored for raw text.
        predicted: one for each of `gold`.
        references: for each of `gold` its other right answers; a free answer is compared with the closest one.
        nll_sum: for raw text: summed negative log-likelihood in nats.
        n_tokens: for raw text: number of tokens summed over.

    Raises:
        DataError: nothing to score.
    """
    if task.kind == "text":
        if nll_sum is None or n_tokens is None:
            raise DataError(f"task {task.name}: raw text is scored by its likelihood", "give nll_sum and n_tokens")
        return {"perplexity": perplexity(nll_sum, n_tokens)}
    if task.kind == "generation" and any(references):
        _check(gold, predicted)
        return {
            name: math.fsum(_of_rows(name, gold, predicted, references)) / len(gold)
            for name in METRICS[task.kind]
            if name in PAIRED
        }
    return {name: PAIRED[name](gold, predicted) for name in METRICS[task.kind] if name in PAIRED}


def row_scores(
    task: Task, gold: Sequence[str], predicted: Sequence[str], references: Sequence[Sequence[str]] = ()
) -> list[float]:
    """The task's metric of each prediction; arguments as in `score`. Their mean is the metric, but for `macro_f1`."""
    return _of_rows(task.metric, gold, predicted, references if task.kind == "generation" else ())


def in_a_line(scores: Sequence[float]) -> str:
    """Shares as a score's details hold them, to four digits."""
    return " ".join(f"{round(score, 4):g}" for score in scores)


def stored_row_scores(score: Evaluation) -> list[float]:
    """The shares that `in_a_line` wrote into a score's details; empty if there are none, or they are damaged."""
    try:
        found = [float(one) for one in (score.details.get("row_scores") or "").split()]
    except ValueError:
        return []
    return found if all(0 <= one <= 1 for one in found) else []


PAIRED: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "exact_match": exact_match,
    "strict_match": strict_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}


def _of_rows(
    name: str, gold: Sequence[str], predicted: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """A metric of each prediction, the best over the right answers."""
    others = references or [()] * len(gold)
    return [
        max(PAIRED[name]([right], [answer]) for right in (first, *more))
        for first, answer, more in zip(gold, predicted, others, strict=True)
    ]


def _check(gold: Sequence[str], predicted: Sequence[str]) -> None:
    if len(gold) != len(predicted):
        raise DataError(f"{len(predicted)} predictions for {len(gold)} examples", "score each example once")
    if not gold:
        raise DataError("no examples to score", "give data with at least one row")


def _mean(gold: Sequence[str], predicted: Sequence[str], pair: Callable[[str, str], float]) -> float:
    _check(gold, predicted)
    return math.fsum(pair(g, p) for g, p in zip(gold, predicted, strict=True)) / len(gold)


def _f_measure(common: int, gold: int, predicted: int) -> float:
    if gold == 0 or predicted == 0:
        return float(gold == predicted)
    return 2 * common / (gold + predicted)


def _pair_f1(gold: str, predicted: str) -> float:
    g, p = words(gold, articles=False), words(predicted, articles=False)
    if not (words(gold) or words(predicted)):
        return float(normalise(gold) == normalise(predicted))
    return _f_measure(sum((Counter(g) & Counter(p)).values()), len(g), len(p))


def _pair_rouge(gold: str, predicted: str) -> float:
    from rapidfuzz.distance import LCSseq

    g, p = words(gold), words(predicted)
    if not g and not p:
        return float(normalise(gold) == normalise(predicted))
    return _f_measure(LCSseq.similarity(g, p), len(g), len(p))
