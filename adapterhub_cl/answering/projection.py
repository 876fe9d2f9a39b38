"""Runs the vocabulary projection at chosen positions only, whatever the architecture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def at_positions(model: Any, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[None]:
    """Within the block `model(...).logits` is `[1, n, vocabulary]`: the logits at `(rows[k], columns[k])`.

    A hook on the output projection picks the hidden states before they reach it, so everything that an
    architecture does to its logits afterwards (scaling, soft caps) still happens.

    Args:
        model: a causal language model, wrapped (PEFT, DDP) or not.
        rows: `[n]`, row of each wanted position.
        columns: `[n]`, column of each wanted position; the logits there predict the token after it.
    """

    def pick(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0][rows, columns][None], *arguments[1:])

    inner = getattr(model, "module", model)
    hook = inner.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()
