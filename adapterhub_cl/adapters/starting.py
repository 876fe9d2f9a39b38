"""A new adapter gets the weights of stored ones to start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from adapterhub_cl.bases.encoders import bare, head_of


def put_factors(model: Any, layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> int:
    """Give the LoRA in training the ΔW of these factors. Ranks beyond theirs keep their A and get B = 0, so that ΔW is
    exactly that of the factors.

    Args:
        layers: name of a layer of the base → A `[r, in]` and B `[out, r]` with ΔW = B·A.

    Returns:
        how many of the layers have no LoRA in this adapter; they are left out.

    Raises:
        ValueError: factors of a higher rank than the adapter's.
    """
    inner, missing = bare(model), 0
    with torch.no_grad():
        for name, (a, b) in layers.items():
            try:
                layer = inner.get_submodule(name)
            except AttributeError:
                layer = None
            if not isinstance(layer, LoraLayer) or "default" not in layer.lora_A:
                missing += 1
                continue
            own_a, own_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            rank = len(a)
            if rank > len(own_a):
                raise ValueError(f"{name}: factors of rank {rank} do not fit an adapter of rank {len(own_a)}")
            own_a[:rank] = a.to(own_a.device, own_a.dtype)
            own_b.zero_()
            own_b[:, :rank] = b.to(own_b.device, own_b.dtype) / layer.scaling["default"]
    return missing


def put_rows(model: Any, rows: Mapping[str, tuple[torch.Tensor, float]]) -> None:
    """Set the rows of an encoder's head for these labels; does nothing where there are none.

    Args:
        rows: label → its weights `[hidden]` and its bias. The task whose labels are exactly these gets them.
    """
    head = head_of(model)
    if head is None or not rows:
        return
    layer = bare(model).get_submodule(head.final)
    with torch.no_grad():
        for known in head.layout.values():
            if known.keys() == rows.keys():
                for label, row in known.items():
                    weight, bias = rows[label]
                    layer.weight[row] = weight.to(layer.weight)
                    layer.bias[row] = bias
