"""Hidden states of a base at one of its layers, computed no further than that layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.batches import by_length
from adapterhub_cl.data.values import whole_characters
from adapterhub_cl.errors import BaseModelError

BATCH_TOKENS = 8192


class _Enough(Exception):  # noqa: N818 (no error: the pass is over)
    """The layer that was asked for has been computed."""


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The list of a model's decoder layers.

    Raises:
        BaseModelError: this architecture keeps none that can be found.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise BaseModelError("the decoder layers of this base were not found", "its hidden states cannot be used")


def shallow_layer(base: LoadedBase) -> int:
    """The layer whose output routers look at by default: two thirds of the way up, counted from 0."""
    return max(0, round(len(decoder_layers(base.model)) * 2 / 3) - 1)


@torch.no_grad()
def pooled(
    base: LoadedBase,
    texts: Sequence[str],
    layer: int,
    *,
    max_length: int = 256,
    progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Mean over its tokens of each text's hidden state after a layer, `[n, hidden]`, fp32, on the CPU.

    The adapters must be off. One pass through the layers up to `layer`, in length-bucketed batches.

    Args:
        layer: counted from 0.
        max_length: longer texts are read up to there, in tokens.
        progress: called with the number of texts done after each batch.
    """
    special = base.tokenizer.bos_token_id
    first = base.tokenizer.eos_token_id if special is None else special
    limit = min(max_length, base.context)
    rows = [
        base.tokenizer(whole_characters(text), truncation=True, max_length=limit, verbose=False).input_ids or [first]
        for text in texts
    ]
    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    kept: dict[str, torch.Tensor] = {}

    def stop(_: torch.nn.Module, __: Any, output: Any) -> None:
        kept["hidden"] = output[0] if isinstance(output, tuple) else output
        raise _Enough

    lengths = [len(row) for row in rows]
    size = max(1, BATCH_TOKENS // max(lengths, default=1))
    hook = decoder_layers(base.model)[layer].register_forward_hook(stop)
    try:
        with base.autocast():
            for indices in by_length(lengths, size):
                longest = max(lengths[i] for i in indices)
                ids = torch.full((len(indices), longest), base.tokenizer.pad_token_id)
                mask = torch.zeros((len(indices), longest), dtype=torch.long)
                for row, index in enumerate(indices):
                    ids[row, : lengths[index]] = torch.tensor(rows[index])
                    mask[row, : lengths[index]] = 1
                ids, mask = ids.to(base.device), mask.to(base.device)
                try:
                    base.model(input_ids=ids, attention_mask=mask, use_cache=False)
                except _Enough:
                    pass
                states = kept.pop("hidden").float() * mask[..., None]
                means = (states.sum(1) / mask.sum(1, keepdim=True)).cpu()
                for index, mean in zip(indices, means, strict=True):
                    found[index] = mean
                if progress is not None:
                    progress(len(indices))
    finally:
        hook.remove()
    return torch.stack(found) if found else torch.empty(0, base.model.config.get_text_config().hidden_size)
