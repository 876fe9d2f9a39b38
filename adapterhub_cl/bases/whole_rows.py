"""Keeps the output layer quick where it reads the last position of each row only.

`logits_to_keep` gives the layer a slice of the hidden states. PyTorch 2.13 multiplies a slice with the weights once
for each row, by a slow path, and copies the weights for it: in 16 bits on a CPU, 24 rows take five seconds instead of
nine milliseconds (pytorch#151934). The same values in a tensor of their own are multiplied at once.
"""

from __future__ import annotations

from typing import Any

import torch


def keep_rows_whole(model: Any) -> None:
    """Have the output layer of a causal language model copy hidden states that are a slice of others."""
    model.get_output_embeddings().register_forward_pre_hook(_whole)


def _whole(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, *others = arguments
    # Not `is_contiguous`: it is true of one row with the stride of a longer one, which is as slow.
    if hidden.dim() == 3 and hidden.stride(0) != hidden.stride(1) * hidden.shape[1]:
        hidden = hidden.clone(memory_format=torch.contiguous_format)
    return (hidden, *others)
