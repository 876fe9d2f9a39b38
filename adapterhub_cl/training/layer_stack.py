"""The stack of a base's layers: measured in part, or computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def stack_of(model: Any) -> tuple[Any, str, torch.nn.ModuleList] | None:
    """The longest list of layers of one kind in a base: its parent module, its name there, and the layers."""
    stacks = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList) and len({type(one) for one in child}) == 1
    ]
    return max(stacks, key=lambda found: len(found[2]), default=None)


@contextmanager
def few_layers(model: Any, count: int) -> Iterator[None]:
    """Within the block a base has only its first layers, if they are all of one kind."""
    found = stack_of(model)
    if found is None:
        yield
        return
    parent, name, layers = found
    setattr(parent, name, layers[:count])
    try:
        yield
    finally:
        setattr(parent, name, layers)


@contextmanager
def recomputed(model: Any, every: int) -> Iterator[None]:
    """Within the block every `every`-th layer keeps its input only and is computed again in the backward pass (gradient
    checkpointing); 0: none."""
    found = stack_of(model) if every else None
    with ExitStack() as changed:
        for layer in found[2][::every] if found else ():
            changed.callback(_restore, layer, layer.__dict__.get("forward"))
            layer.forward = _again(layer.forward)
        yield


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return call


def _restore(layer: Any, before: Any) -> None:
    if before is None:
        del layer.forward
    else:
        layer.forward = before
