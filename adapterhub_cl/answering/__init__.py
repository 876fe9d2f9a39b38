"""Answering: how a base, with whatever adapters are on it, scores labels and writes text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """The answer to one example.

    Attributes:
        confidence: 0 to 1: of a choice the label's probability, of a written answer the geometric mean of its tokens'
            probabilities; NaN where the adapter has diverged.
        scores: of a choice, every label's probability.
        truncated: the input was cut.
        finished: it ended by itself, not at the limit of new tokens.
        prompt_tokens: how many the prompt has.
        tokens: of a written answer each token's id and log-probability.
        stopped_at: the stop string that ended it, or ''.
    """

    text: str
    confidence: float
    scores: dict[str, float]
    truncated: bool = False
    finished: bool = True
    prompt_tokens: int = 0
    tokens: tuple[tuple[int, float], ...] = ()
    stopped_at: str = ""


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switches dropout off for the time of the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
