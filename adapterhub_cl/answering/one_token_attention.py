"""Attention where every row writes one token, on a CPU.

Two plain matrix products take the place of torch's fused kernel, which is made for many queries. Query heads that share
a key head are the rows of one product, so keys are not copied (docs/decisions/060-one-token-attention.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adapterhub_cl.answering.unpadded_attention import UNKNOWN

NAME = "adapterhub_one_token"


@contextmanager
def one_token_attention(model: Any) -> Iterator[None]:
    """In the block, a base on a CPU whose attention is `sdpa` attends by matrix products where rows have one query.

    Args:
        model: the base's model, of transformers.
    """
    config = model.config
    usual = model.device.type == "cpu" and config._attn_implementation == "sdpa"
    if not usual or not getattr(model, "_supports_attention_backend", False):
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Query `[rows, heads, 1, d]`, key and value `[rows, kv_heads, n, d]`, mask `[rows, 1, 1, n]`, true where a token
    may look, or added to the scores → `[rows, 1, heads, d]`."""
    rows, heads, length, width = query.shape
    unlike = options.get("dropout") or any(options.get(name) is not None for name in UNKNOWN)
    if length > 1 or unlike or (mask is not None and mask.shape[1] > 1):
        return sdpa_attention_forward(module, query, key, value, mask, **options)  # type: ignore[no-any-return]
    scale = options.get("scaling")
    scores = query.reshape(rows, key.shape[1], -1, width) @ key.transpose(2, 3)
    scores = scores.float() * (width**-0.5 if scale is None else scale)
    if mask is not None:
        mask = mask[..., : key.shape[2]]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    found = scores.softmax(-1).to(query.dtype) @ value
    return found.reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
