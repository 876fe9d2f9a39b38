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
    max_new_tokens: int = 64,
    max_length: int | None = None,
    progress: Any = None,
    **generation: Any,
) -> list[Prediction]:
    """One prediction for each input, in order.

    Args:
        adapter: the name to report as the one that answered.
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
    if any(not math.isfinite(confidence) for _, confidence, _ in found):
        raise AdapterError(
            f"{adapter} gives no finite scores",
            "its weights have diverged: train it again with a lower --learning-rate",
        )
    return [
        Prediction(example.input or example.instruction, adapter, text, confidence, scores, task=task.name)
        for example, (text, confidence, scores) in zip(inputs, found, strict=True)
    ]
