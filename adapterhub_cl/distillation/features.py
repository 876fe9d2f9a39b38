"""Feature distillation: hidden states of chosen layers at the answer positions (FitNets; Romero et al. 2015,
arXiv:1412.6550, between models of one width, so without a projection)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from adapterhub_cl.bases.hidden import decoder_layers
from adapterhub_cl.errors import UsageError


@contextmanager
def watched(model: Any, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Inside the block the dict has the output of each of these layers in the last pass, `[rows, length, hidden]`.

    Raises:
        UsageError: there is no such layer.
    """
    found: dict[int, torch.Tensor] = {}
    there = decoder_layers(model) if layers else torch.nn.ModuleList()
    if layers and layers[-1] >= len(there):
        raise UsageError(
            f"--features {layers[-1]}: this base has {len(there)} layers", f"use numbers from 0 to {len(there) - 1}"
        )

    def hook(layer: int) -> Any:
        def keep(_: torch.nn.Module, __: Any, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    hooks = [there[layer].register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield found
    finally:
        for one in hooks:
            one.remove()


def feature_loss(student: Mapping[int, torch.Tensor], teacher: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Mean over layers of ‖student − teacher‖² ÷ ‖teacher‖², positions `[n, hidden]` of each layer."""
    losses = []
    for layer, wanted in teacher.items():
        target = wanted.float().to(student[layer].device)
        losses.append((student[layer].float() - target).square().sum() / target.square().sum().clamp(min=1e-12))
    return torch.stack(losses).mean()
