"""The cross entropy of many positions over a large vocabulary, without a tensor of all their logits.

A batch of 8 answers of 500 tokens on a base with 128,000 tokens has 2 GB of logits in fp32, and autograd keeps them
and two more tensors of that size. Here they are computed for some positions at a time, and their gradient with them, so
that only `[n, width]` is kept (as in Liger-Kernel, Hsu et al. 2024, arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

CHUNK_BYTES = 32 << 20  # of logits in fp32
HALF_SCALE = 1024.0  # fp16 ends at 6e-8, and most of a softmax is less

# Whether a base's logits are what its output layer gives; some scale or cap them afterwards.
_LINEAR: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


class _ChunkedLosses(torch.autograd.Function):
    """−log softmax(h·Wᵀ + b)[target]; h `[n, width]`, W `[vocabulary, width]`, targets `[n]`; gives `[n]`, fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        rows = max(1, CHUNK_BYTES // (4 * len(weight)))
        scale = HALF_SCALE if dtype == torch.float16 else 1.0
        learns = ctx.needs_input_grad[0]
        losses, gradients = [], []
        for part, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
            logits = _output(part, weight, bias, dtype).float()
            losses.append(functional.cross_entropy(logits, wanted, reduction="none"))
            if learns:
                wrong = logits.softmax(-1)
                wrong[torch.arange(len(wanted), device=wrong.device), wanted] -= 1
                gradients.append(((wrong.mul_(scale).to(dtype) @ weight.to(dtype)).float() / scale).to(hidden.dtype))
        if learns:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (of_hidden,) = ctx.saved_tensors
        return (of_hidden * gradients[0].unsqueeze(-1)).to(of_hidden.dtype), None, None, None, None


def _output(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return functional.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def is_large(model: Any, positions: int) -> bool:
    """Whether the logits of that many positions are computed in several pieces: they are large, and `model` has a
    frozen output layer without an adapter, whose outputs are its logits as far as is known."""
    head = _head(model)
    return (
        type(head) is torch.nn.Linear
        and not any(p.requires_grad for p in head.parameters())
        and head.weight.is_floating_point()
        and positions * len(head.weight) * 4 > CHUNK_BYTES
        and _LINEAR.get(head, True)
    )


def chunked_losses(
    model: Any, inputs: dict[str, Any], rows: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor | None:
    """The loss of each target, `[n]`, fp32, with the gradient; None if the model changes its logits after the output
    layer, which is found out at the first call.

    Args:
        inputs: of the model.
        rows: `[n]`, row of each position.
        columns: `[n]`, column of each position; the logits there predict the target.
        targets: `[n]`, token ids.
    """
    head = _head(model)
    with _first_only(head, rows, columns) as picked:
        first = model(**inputs, use_cache=False).logits[0]
    (hidden,) = picked
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else head.weight.dtype
    if head not in _LINEAR:
        with torch.no_grad():
            alone = _output(hidden[:1], head.weight, head.bias, dtype).to(first.dtype)
            _LINEAR[head] = torch.equal(first, alone)
    if not _LINEAR[head]:
        return None
    found: torch.Tensor = _ChunkedLosses.apply(hidden, head.weight, head.bias, targets, dtype)  # type: ignore[no-untyped-call]
    return found


def _head(model: Any) -> Any:
    return getattr(model, "module", model).get_output_embeddings()


@contextmanager
def _first_only(head: torch.nn.Module, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Within the block the output layer sees the first position alone; the hidden states of all, `[n, width]`, are in
    the list."""
    picked: list[torch.Tensor] = []

    def pick(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        picked.append(arguments[0][rows, columns])
        return (picked[0][:1][None], *arguments[1:])

    hook = head.register_forward_pre_hook(pick)
    try:
        yield picked
    finally:
        hook.remove()
