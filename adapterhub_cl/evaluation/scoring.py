"""Scores a model on a task: predictions, all metrics of that kind of task, interval and per-class report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import AdapterError, DataError
from adapterhub_cl.evaluation import metrics
from adapterhub_cl.evaluation.preference_scores import preference_score
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.progress import by_share
from adapterhub_cl.types import Evaluation, Example, Task

ROW_BY_ROW = metrics.PAIRED.keys() - {"macro_f1"}  # metrics that are the mean of the single rows' scores


def evaluate(
    model: Any,
    tokenizer: Any,
    objective: BaseObjective,
    task: Task,
    examples: Sequence[Example],
    *,
    data: str,
    max_length: int,
    dtype: torch.dtype,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[Evaluation]:
    """All metrics of the task, the one that stands for it first; of preferences the reward accuracy.

    The details of the first have the scores of the single rows (`row_scores`, to four digits), where it is their mean.

    Args:
        model: the base with the adapter active.
        max_length: the base's context; where inputs are cut is the task's own.
        data: where the examples came from; stored with the scores.
        dtype: type of the matrix products.
        progress: called with the number of examples done after each batch.

    Raises:
        DataError: no examples, or one without an answer.
    """
    if not examples:
        raise DataError(f"nothing to evaluate {task.name} on", "give examples with --eval or --data")
    answers = [example.answer for example in examples]
    if any(answer is None for answer in answers):
        raise DataError(f"an example of {data} has no answer", "add the answers, or use predict")
    if any(example.prefers for example in examples):
        return [
            preference_score(
                model,
                tokenizer,
                objective,
                task,
                examples,
                data=data,
                max_length=max_length,
                dtype=dtype,
                batch_size=batch_size,
                progress=progress,
            )
        ]
    details: dict[str, Any] = {}
    cut = 0
    if task.kind == "text":
        encode = objective.tokeniser(tokenizer, task, max_length)
        gold = [encode.gold(example) for example in examples]
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            tokens = [window for example in examples for window in encode.windows(example)]
            told = by_share(len(tokens), len(examples), progress)
            losses = objective.perplexities(model, tokens, tokenizer.pad_token_id, batch_size, told)
        total, count = sum(s for s, _ in losses), sum(n for _, n in losses)
        scores = metrics.score(task, gold, gold, nll_sum=total, n_tokens=count)
    else:
        found = answered(
            model,
            tokenizer,
            objective,
            task,
            examples,
            max_length=max_length,
            dtype=dtype,
            batch_size=batch_size,
            progress=progress,
        )
        gold, predicted, cut = found
        references = [example.references for example in examples]
        scores = metrics.score(task, gold, predicted, references=references)
        if task.kind == "choice":
            details = metrics.classification_report(gold, predicted, list(task.labels))
    order = sorted(scores, key=lambda name: name != task.metric)
    more = {name: _details(name, scores[name], len(gold), details) for name in order}
    if cut:
        more[order[0]]["cut_inputs"] = cut
    if task.metric in ROW_BY_ROW and task.kind != "text" and len(gold) <= metrics.MOST_ROW_SCORES:
        more[task.metric]["row_scores"] = metrics.in_a_line(metrics.row_scores(task, gold, predicted, references))
    return [Evaluation(task.name, name, scores[name], len(gold), data, more[name]) for name in order]


class Answered(NamedTuple):
    """What a model answers to examples.

    Attributes:
        gold, said: the right answer and the model's to each.
        cut: inputs that are longer than the task's limit, and were cut.
    """

    gold: list[str]
    said: list[str]
    cut: int


def answered(
    model: Any,
    tokenizer: Any,
    objective: BaseObjective,
    task: Task,
    examples: Sequence[Example],
    *,
    max_length: int,
    dtype: torch.dtype,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Answered:
    """The right answer and the model's answer to each example of a task that is not raw text; arguments as in
    `evaluate`."""
    encode = objective.tokeniser(tokenizer, task, max_length)
    gold = [encode.gold(example) for example in examples]
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        found = objective.predict(
            model,
            tokenizer,
            task,
            examples,
            max_length=max_length,
            batch_size=batch_size,
            # as many as `predict` writes, and more where a right answer is longer than any of the training data
            max_new_tokens=encode.budget(
                [text for e, right in zip(examples, gold, strict=True) for text in (right, *e.references)]
            ),
            progress=progress,
        )
    if not all(math.isfinite(answer.confidence) for answer in found):
        raise diverged(f"rows of {task.name}")
    return Answered(gold, [answer.text for answer in found], sum(answer.truncated for answer in found))


def diverged(what: str) -> AdapterError:
    """The error for scores that are not numbers, with which nothing can be compared.

    Args:
        what: was scored.
    """
    return AdapterError(
        f"it gives no finite scores for {what}: its weights have diverged",
        "train it again with a lower --learning-rate, or merge with smaller --weights",
    )


def dev_figures(
    model: Any,
    tokenizer: Any,
    objective: BaseObjective,
    task: Task,
    examples: Sequence[Example],
    tokens: Sequence[Tokens],
    *,
    max_length: int,
    dtype: torch.dtype,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """What the best epoch is chosen by: a choice task's accuracy, then the loss (nats) of an answer token, or of a
    preference row.

    Args:
        progress: called with the number of examples done after each batch of the loss.
    """
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        losses = objective.judged(model, tokens, tokenizer.pad_token_id, batch_size, progress)
        figures: dict[str, float] = {}
        asked = [e for e in examples if e.answer in task.labels]
        if task.kind == "choice" and asked:
            found = objective.predict(model, tokenizer, task, asked, max_length=max_length, batch_size=batch_size)
            figures["accuracy"] = metrics.accuracy([str(e.answer) for e in asked], [answer.text for answer in found])
    return {**figures, **losses}


def _details(name: str, value: float, n: int, report: dict[str, Any]) -> dict[str, Any]:
    if name not in ("accuracy", "exact_match"):
        return {}
    low, high = metrics.wilson_interval(round(value * n), n)
    return {"interval": [round(low, 4), round(high, 4)], **(report if name == "accuracy" else {})}
