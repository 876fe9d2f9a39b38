"""Small examples and a quick way to train on them; what the tests of several rooms share."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.objectives.causal_lm import Objective
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import BaseStrategy
from adapterhub_cl.training.loop import Loop
from adapterhub_cl.training.loop_state import LoopOrder, Outcome

BOS, EOS, PAD = 1, 2, 0


def toy_tokens(count: int = 14, seed: int = 0) -> list[Tokens]:
    """A rule to be learned: the answer is the token after the prompt's second one. Lengths differ."""
    draw = random.Random(seed)
    examples = []
    for _ in range(count):
        key = draw.randrange(10, 18)
        rest = [draw.randrange(100, 300) for _ in range(draw.randrange(6))]
        examples.append(Tokens((BOS, key, *rest), (key + 20,) * draw.randrange(1, 3) + (EOS,)))
    return examples


def toy_settings(**changes: Any) -> TrainingSettings:
    """Two epochs of four steps on `toy_tokens()`."""
    return TrainingSettings(**{"epochs": 2, "batch_size": 4, "rank": 2, "learning_rate": 0.01, "seed": 3, **changes})


def train(
    base: Any,
    settings: TrainingSettings,
    examples: Sequence[Tokens] | None = None,
    *,
    strategy: BaseStrategy | None = None,
    objective: BaseObjective | None = None,
    run: Path | None = None,
    start: Path | None = None,
    beneath: Path | None = None,
    after: Callable[[Any, Loop], None] | None = None,
    log: Callable[[Mapping[str, float], int], None] | None = None,
    fuse: bool = False,
    **options: Any,
) -> Outcome:
    """Train a LoRA on a pico base as `learn` does; the base is as it was afterwards.

    Args:
        after: called with the model and the loop while the trained LoRA is still on it.
    """
    with (
        new_adapter(base, settings, "CAUSAL_LM", start, beneath) as model,
        fused(model if fuse else torch.nn.Module(), base.dtype),
    ):
        live = {name: options.pop(name) for name in ("evaluate", "reporter", "accelerator") if name in options}
        order = LoopOrder(
            objective or Objective(),
            strategy or BaseStrategy(),
            settings,
            toy_tokens() if examples is None else examples,
            settings.peak_rate(32),
            PAD,
            base.dtype,
            parent=start or beneath,
            run=run,
            **options,
        )
        loop = Loop(model, order, log=log, **live)
        outcome = loop()
        if after is not None:
            after(model, loop)
        return outcome


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Bitwise the same tensors under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest difference between tensors of the same names."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max()) for k in one)


def stir(model: torch.nn.Module, seed: int = 11, size: float = 0.1) -> None:
    """Gives every LoRA factor random values, so that the adapter does something (a fresh one's B is zero)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
