"""What another model said at the answers of rows, and how far the model in training is from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adapterhub_cl.types import Example

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch

NEVER = -1e4  # log-probability of an impossible token; representable in fp16


def sample_key(example: Example) -> int:
    """A number for the sample's text, the same in every process."""
    text = "\0".join((example.instruction, example.text, example.answer or ""))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def told_divergence(
    told: Mapping[int, tuple[torch.Tensor, torch.Tensor]], batch: Batch, logits: torch.Tensor
) -> torch.Tensor | None:
    """Mean KL from what was said of a batch's rows, times their share of the rows; None where nothing was.

    Args:
        told: row → log-probabilities `[n_answer, k]` and their tokens, for the last n positions of its answer.
        logits: of the model in training at the batch's labelled positions, `[n, vocabulary]`.
    """
    import torch

    places = batch.places[0]
    picked: list[torch.Tensor] = []
    stored: list[torch.Tensor] = []
    ids: list[torch.Tensor] = []
    for k, row in enumerate(batch.indices):
        if row not in told:
            continue
        logs, tokens = told[row]
        at = (places == k).nonzero()[:, 0][-len(logs) :]  # the answer comes last
        if len(at) == len(logs):
            picked, stored, ids = [*picked, at], [*stored, logs], [*ids, tokens]
    if not picked:
        return None
    device = logits.device
    tokens = beside(ids, 0).to(device).clamp(max=logits.shape[1] - 1)
    found = top_divergence(beside(stored, NEVER).to(device), tokens, logits[torch.cat(picked)])
    return found * (len(picked) / len(batch.indices))


def top_divergence(stored: torch.Tensor, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean KL(stored ‖ model) over positions, over the stored tokens and all others as one.

    Args:
        stored: log-probabilities `[n, k]`; `NEVER` means no token.
        ids: their tokens `[n, k]`.
        logits: the model's `[n, vocabulary]`, with the gradient.
    """
    import torch

    logs = logits.float().log_softmax(-1).gather(-1, ids).masked_fill(stored < NEVER / 2, NEVER)
    rest = [torch.log1p(-x.exp().sum(-1).clamp(max=1 - 1e-6)) for x in (stored, logs)]
    target = torch.cat([stored, rest[0][:, None]], 1)
    model = torch.cat([logs, rest[1][:, None]], 1)
    return (target.exp() * (target - model)).sum(-1).mean()


def beside(parts: Sequence[torch.Tensor], filler: float) -> torch.Tensor:
    """Parts of different widths as one `[n, k]`: an encoder's tasks have different numbers of labels."""
    import torch
    from torch.nn.functional import pad

    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, width - part.shape[1]), value=filler) for part in parts])
