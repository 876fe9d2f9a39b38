"""How answers to the three files are scored: the same code for every method, a value between 0 and 1 for each row."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub_cl.evaluation.metrics import PAIRED, wilson_interval

Values = dict[str, list[float]]
FIRST = {
    "tickets": "accuracy",
    "emails": "exact JSON",
    "talks": "ROUGE-L",
}  # the score that a learning rate is chosen by


def values(name: str, right: Sequence[Any], said: Sequence[str]) -> Values:
    """Score → one value for each row.

    Args:
        name: `tickets` (labels), `emails` (objects) or `talks` (sentences).
        right: the right answer of each row.
        said: what the model answered, one for each.

    Raises:
        ValueError: not one answer for each row.
    """
    pairs = list(zip(right, said, strict=True))
    if name == "tickets":
        return {"accuracy": [float(gold == text.strip()) for gold, text in pairs]}
    if name == "emails":
        found = [(gold, parsed(text)) for gold, text in pairs]
        return {
            "exact JSON": [float(gold == made) for gold, made in found],
            "field F1": [field_f1(gold, made) for gold, made in found],
            "valid JSON": [float(made is not None) for _, made in found],
        }
    return {
        title: [PAIRED[metric]([gold], [text]) for gold, text in pairs]
        for title, metric in (("ROUGE-L", "rouge_l"), ("exact match", "exact_match"))
    }


def parsed(text: str) -> dict[str, Any] | None:
    """The object that an answer is; None if the whole answer is not one JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def field_f1(right: Mapping[str, Any], said: Mapping[str, Any] | None) -> float:
    """F1 of the fields of one object: a field counts if its name and its value, with its type, are both right."""
    if not said:
        return 0.0
    same = sum(key in said and json.dumps(said[key]) == json.dumps(value) for key, value in right.items())
    return 2 * same / (len(right) + len(said))


def mean(found: Sequence[float]) -> float:
    return math.fsum(found) / len(found)


def interval(found: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean: Wilson's where every value is 0 or 1, else by resampling the rows."""
    if set(found) <= {0.0, 1.0}:
        return wilson_interval(round(sum(found)), len(found))
    return resampled(found)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean difference, of the same rows under two methods, by resampling the rows."""
    return resampled([a - b for a, b in zip(ours, theirs, strict=True)])


def resampled(found: Sequence[float], rounds: int = 2000) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the mean of rows drawn anew with repetition."""
    draw = random.Random(0)
    means = sorted(mean(draw.choices(found, k=len(found))) for _ in range(rounds))
    return means[int(0.025 * rounds)], means[int(0.975 * rounds) - 1]
