"""Answering: how a base, with whatever adapters are on it, scores labels and writes text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switches dropout off for the time of the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
