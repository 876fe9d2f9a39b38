"""Answers inputs of one task with one adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import AdapterError, DataError
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.types import Example, Prediction, Task


def answer(
    model: Any,
    base: LoadedBase,
    objective: BaseObjective,
    task: Task,
    inputs: Sequence[Example],
    adapter: str,
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    progress: Any = None,
    **generation: Any,
) -> list[Prediction]:
    """One prediction for each input, in order.

    Args:
        adapter: the name to report as the one that answered.
        max_new_tokens: longest free answer; None: what the task's answers need.
        generation: passed to transformers' `generate` for free answers.

    Raises:
        DataError: an input is empty.
    """
    for number, example in enumerate(inputs, 1):
        if not example.asks:
            raise DataError(f"input {number} is empty", "give a text")
    with base.autocast():
        found = objective.predict(
            model,
            base.tokenizer,
            task,
            inputs,
            max_length=min(max_length or base.context, base.context),
            max_new_tokens=max_new_tokens,
            progress=progress,
            **generation,
        )
    if any(not math.isfinite(one.confidence) for one in found):
        raise AdapterError(
            f"{adapter} gives no finite scores",
            "its weights have diverged: train it again with a lower --learning-rate",
        )
    return [
        Prediction(
            example.input or example.instruction,
            adapter,
            one.text,
            one.confidence,
            one.scores,
            task=task.name,
            truncated=one.truncated or not one.finished,
            finished=one.finished,
        )
        for example, one in zip(inputs, found, strict=True)
    ]
