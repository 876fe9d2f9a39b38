"""Attention over rows without padding (see `data.unpadded`), registered with transformers under names of its own.

Each row's own tokens see the shared beginning and themselves; the beginning is projected once. Everything else in a
layer works on single tokens and needs no change. Padded rows are attended to as usual.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from adapterhub_cl.answering.free_mask import by_architecture, window
from adapterhub_cl.data.unpadded import SharedBeginning, Unpadded

NAMES = {"sdpa": "adapterhub_unpadded_sdpa", "eager": "adapterhub_unpadded_eager"}
UNKNOWN = ("softcap", "s_aux", "position_bias", "sinks")  # what changes the scores in ways that nothing here follows


def can_do_without_padding(model: Any, longest: int) -> bool:
    """Whether a base's code and config allow rows without padding, of up to `longest` tokens; `speed.choose` compares
    the losses besides."""
    seen = window(model)
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and type(model)._can_set_attn_implementation()
        and by_architecture(model)
        and (not seen or longest <= seen)
    )


def inputs_of(rows: Unpadded) -> dict[str, Any]:
    """Arguments of the model's forward pass for rows without padding."""
    # A mask of four dimensions is passed on as it is, so no layer makes one; `_grouped` makes its own.
    mask = torch.zeros(1, 1, 1, 1, device=rows.input_ids.device)
    return {"input_ids": rows.input_ids, "position_ids": rows.positions, "attention_mask": mask, "unpadded": rows}


def _with_sdpa(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> Any:
    rows = options.pop("unpadded", None)
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    return _grouped(_scaled_dot_product, module, query, key, value, rows, **options), None


def _with_matrices(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> Any:
    rows = options.pop("unpadded", None)
    if rows is not None:
        return _grouped(_matrices, module, query, key, value, rows, **options), None
    _refuse_unknown(options)
    found = _matrices(query, key, value, mask, options.get("scaling") or query.shape[-1] ** -0.5)
    return found.transpose(1, 2).contiguous(), None


def _grouped(
    attend: Any,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Unpadded,
    scaling: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """Query `[1, heads, n, d]`, key and value `[1, kv_heads, n, d]` → `[1, n, heads, d]`."""
    _refuse_unknown(options)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    parts = []
    for group in rows.groups:
        first = group.start + group.shared
        if group.shared:
            begun = slice(group.start, first)
            mask = _causal(group.shared, 0, query.dtype, query.device)
            parts.append(attend(query[:, :, begun], key[:, :, begun], value[:, :, begun], mask, scale)[0])
        own = _rows(query, group)
        seen = [torch.cat([_beginning(x, group), _rows(x, group)], 2) if group.shared else _rows(x, group)
                for x in (key, value)]  # fmt: skip
        mask = _causal(own.shape[2], group.shared, query.dtype, query.device)
        found = attend(own, *seen, mask, scale)
        heads, width = found.shape[1], found.shape[3]
        parts.append(found.transpose(0, 1).reshape(heads, -1, width).index_select(1, group.back))
    padding = query.shape[2] - rows.groups[-1].end
    if padding:
        parts.append(parts[0].new_zeros(parts[0].shape[0], padding, parts[0].shape[2]))
    return torch.cat(parts, 1).transpose(0, 1)[None].contiguous()


def _rows(x: torch.Tensor, group: SharedBeginning) -> torch.Tensor:
    """`[1, heads, n, d]` → the rows' own tokens, `[rows, heads, longest, d]`."""
    picked = x[0].index_select(1, group.own.flatten())
    return picked.view(x.shape[1], *group.own.shape, x.shape[3]).transpose(0, 1)


def _beginning(x: torch.Tensor, group: SharedBeginning) -> torch.Tensor:
    """The shared beginning for each row, `[rows, heads, shared, d]`."""
    return x[:, :, group.start : group.start + group.shared].expand(group.own.shape[0], -1, -1, -1)


@lru_cache(maxsize=16)  # every layer of a pass asks for the same ones
def _causal(length: int, before: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`[length, before + length]`: 0 where a token may look, the lowest number elsewhere. Not to be written to."""
    lowest = torch.full((length, before + length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return lowest.triu_(before + 1)


def _scaled_dot_product(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    times = query.shape[1] // key.shape[1]
    if times > 1:
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _matrices(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """`[rows, heads, q, d]`, with fewer heads in key and value where several queries share one."""
    rows, heads, length, width = query.shape
    shared = key.shape[1]
    folded = query.reshape(rows, shared, heads // shared * length, width)
    scores = (folded @ key.transpose(2, 3)).view(rows, heads, length, -1) * scale
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    found = weights.view(rows, shared, heads // shared * length, -1) @ value
    return found.view(rows, heads, length, -1)


def _refuse_unknown(options: dict[str, Any]) -> None:
    if any(options.get(name) is not None for name in UNKNOWN) or options.get("dropout"):
        raise NotImplementedError("this attention has more than scores and a mask")


AttentionInterface.register(NAMES["sdpa"], _with_sdpa)
AttentionInterface.register(NAMES["eager"], _with_matrices)
AttentionMaskInterface.register(NAMES["sdpa"], sdpa_mask)
AttentionMaskInterface.register(NAMES["eager"], eager_mask)
