"""LoRA's forward and backward as one step: the same mathematics as PEFT's layer with fewer passes over memory.

PEFT adds the base's output, a clone of it, two products, a scaling and two casts, each writing a tensor as large as
the activations, and autograd keeps most of them. Here a layer's forward is two products into one output, and its
backward five products; only its input is kept. On a CPU the dequantised weights of a 4-bit base can also be kept for
the whole run: bitsandbytes otherwise dequantises every weight twice a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from adapterhub_cl.adapters.fused_norms import fused_norms
from adapterhub_cl.bases.divided_base import is_divided


class _Fused(torch.autograd.Function):
    """y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ + (x·Fᵀ)·Gᵀ (+ bias); x `[…, in]`, W `[out, in]`, A `[r, in]`, B `[out, r]`.

    F `[q, in]` and scaled G `[out, q]` are a frozen adapter's factors, stacked with A and B for the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        weight: Callable[[], torch.Tensor],
        bias: torch.Tensor | None,
        scaling: float,
        frozen: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        dense = weight()
        rows = x.reshape(-1, x.shape[-1]).to(dense.dtype)
        low_a, low_b = a.to(dense.dtype), (b * scaling).to(dense.dtype)
        if frozen is not None:
            low_a, low_b = torch.cat([low_a, frozen[0]], 0), torch.cat([low_b, frozen[1]], 1)
        hidden = rows @ low_a.T
        # Created in its final shape: a view could not be changed in place by the code that follows (as in Longformer).
        result = rows.new_empty(*x.shape[:-1], dense.shape[0])
        y = result.view(-1, dense.shape[0])
        if bias is None:
            torch.mm(rows, dense.T, out=y)
        else:
            torch.addmm(bias.to(dense.dtype), rows, dense.T, out=y)
        y.addmm_(hidden, low_b.T)
        ctx.save_for_backward(rows, hidden, low_a, low_b)
        ctx.weight, ctx.scaling, ctx.shape, ctx.kind, ctx.rank = weight, scaling, x.shape, x.dtype, a.shape[0]
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, hidden, low_a, low_b = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1]).to(rows.dtype)
        down = gradient @ low_b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (gradient @ ctx.weight()).addmm_(down, low_a).view(ctx.shape).to(ctx.kind)
        grad_a = (down[:, : ctx.rank].T @ rows).float()
        grad_b = (gradient.T @ hidden[:, : ctx.rank]).float() * ctx.scaling
        return grad_x, grad_a, grad_b, None, None, None, None


@contextmanager
def fused(model: Any, dtype: torch.dtype, keep_bytes: int = 0) -> Iterator[int]:
    """Inside the block, plain LoRA layers of `model` run fused, and so do its RMSNorms where something is trained;
    all others are unchanged.

    Args:
        dtype: type of the products.
        keep_bytes: how much memory dequantised 4-bit weights may use until the end of the block; 0 dequantises
            them at each use.

    Yields:
        the number of layers that run fused.
    """
    changed: list[Any] = []
    for layer in model.modules():
        weight = (
            dense_weight(layer.get_base_layer(), dtype) if isinstance(layer, LoraLayer) and _is_plain(layer) else None
        )
        if weight is None:
            continue
        base = layer.get_base_layer()
        size = layer.in_features * layer.out_features * dtype.itemsize
        if hasattr(base.weight, "quant_state") and size <= keep_bytes:
            keep_bytes -= size
            weight = _constant(weight())
        layer.forward = _forward(layer, weight, base.bias, _frozen(layer, dtype))
        changed.append(layer)
    try:
        # What is only served has no backward pass; norms are tried before, when a divided base is not together.
        trained = any(parameter.requires_grad for parameter in model.parameters())
        with fused_norms(model) if trained and not is_divided(model) else nullcontext():
            yield len(changed)
    finally:
        for layer in changed:
            del layer.forward


@contextmanager
def base_alone(model: Any) -> Iterator[None]:
    """Within the block the adapter does nothing, also where `fused` runs its layers: those would not ask PEFT.

    What is trained stays as it was: PEFT makes every adapter trainable when it turns them on again, also one that lies
    frozen beneath another.
    """
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and "forward" in m.__dict__]
    replaced = [(layer, layer.__dict__.pop("forward")) for layer in layers]
    try:
        with model.disable_adapter():
            yield
    finally:
        for layer, forward in replaced:
            layer.forward = forward
        for name, parameter in model.named_parameters():
            if parameter.requires_grad != trained[name]:
                parameter.requires_grad_(trained[name])


def _is_plain(layer: Any) -> bool:
    """Whether a layer has one adapter, or one over a frozen one, and nothing that needs PEFT's own forward (DoRA,
    dropout and others)."""
    name = "default"
    dropout = getattr(layer.lora_dropout, name, None)
    return (
        list(layer.active_adapters) in ([name], [name, "beneath"])
        and name in layer.lora_A
        and name not in layer.lora_variant
        and not layer.merged
        and not layer.lora_bias.get(name)
        and not (dropout is not None and dropout.training and getattr(dropout, "p", 0.0))
    )


def dense_weight(base: Any, dtype: torch.dtype) -> Callable[[], torch.Tensor] | None:
    """A function that returns a linear layer's dense `[out, in]` weight in `dtype`; None for unsupported layers."""
    if type(base) is torch.nn.Linear:
        return lambda: base.weight.to(dtype)
    if type(base).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        return lambda: dequantize_4bit(base.weight.data, base.weight.quant_state).to(dtype)
    return None


def _constant(value: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: value


def _frozen(layer: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The factors of the frozen adapter below the one in training, with scaled B."""
    name = "beneath"
    if name not in layer.active_adapters or name not in layer.lora_A:
        return None
    a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return a.to(dtype), (b * layer.scaling[name]).to(dtype)


def _forward(
    layer: Any,
    weight: Callable[[], torch.Tensor],
    bias: torch.Tensor | None,
    frozen: tuple[torch.Tensor, torch.Tensor] | None,
) -> Callable[..., torch.Tensor]:
    a, b, scaling = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]

    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        result: torch.Tensor = _Fused.apply(x, a, b, weight, bias, scaling, frozen)  # type: ignore[no-untyped-call]
        return result

    return forward
