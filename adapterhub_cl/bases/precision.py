"""Chooses the type of the matrix products by measuring: a processor that has bf16 instructions may be slow at them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import torch

from adapterhub_cl.bases.this_machine import UserCache, processor
from adapterhub_cl.errors import UnknownNameError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BUDGET = 0.5  # seconds
ROUNDS = (3, 30)
ROWS = 512  # tokens of the products that are timed
MARGIN = 1.15  # how much faster the second type must be: noise must not decide
SHARE_OF_MEMORY = 0.5  # of what is free, for weights of 4 bytes


def choose_dtype(
    dtype: str, device: torch.device, config: Mapping[str, Any] | None = None, parameters: int = 0
) -> tuple[torch.dtype, str]:
    """The type of the products and why it was chosen; the reason is empty where the user named it.

    `auto` times products of the base's own shapes: on a CPU in bf16 and fp32, on a GPU in bf16 and fp16.

    Args:
        config: the base's config.json; None: of a small model.
        parameters: of the base; weights that would not fit in fp32 stay in bf16.

    Raises:
        UnknownNameError: no such type.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UnknownNameError("dtype", dtype, [*DTYPES, "auto"])
        return DTYPES[dtype], ""
    first, second = ("bf16", "fp16") if device.type == "cuda" else ("bf16", "fp32")
    if second == "fp32" and parameters * 4 > SHARE_OF_MEMORY * psutil.virtual_memory().available:
        return DTYPES[first], f"{first}, because the weights would not fit into memory in {second}"
    shapes = _shapes(config or {})
    store, where = UserCache("speed.json"), torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    key = f"products|{where}|{torch.__version__}|{shapes}"
    try:
        ratio = float(store.get(key) or "")
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < math.inf:
        ratio = times_as_fast(lambda name: _seconds(shapes, DTYPES[name], device), first, second)
        store.put(key, f"{ratio:.3g}")
    # bf16 needs half the memory of fp32, and no scaling of the loss as fp16 does: it is taken where both are alike.
    if ratio * MARGIN >= 1:
        return DTYPES[first], f"{first}, measured here to be {ratio:.1f} times as fast as {second}"
    return DTYPES[second], f"{second}, measured here to be {1 / ratio:.1f} times as fast as {first}"


def times_as_fast(seconds: Callable[[str], float], first: str, second: str) -> float:
    """How many times as fast the first type is: the median of rounds in which both are timed in turn."""
    started = time.perf_counter()
    seconds(first), seconds(second)  # the first products make kernels and buffers
    ratios: list[float] = []
    least, most = ROUNDS
    while len(ratios) < most and (len(ratios) < least or time.perf_counter() - started < BUDGET):
        ratios.append(seconds(second) / max(seconds(first), 1e-9))
    return sorted(ratios)[len(ratios) // 2]


def _shapes(config: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """In and out of a layer's products, from whatever names an architecture uses."""
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, Mapping) else config
    width = _first(config, ("hidden_size", "n_embd", "d_model", "dim"), 512)
    wide = _first(config, ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim"), 4 * width)
    return ((width, width), (width, wide), (wide, width))


def _first(config: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    values = [config.get(name) for name in names]
    return next((value for value in values if isinstance(value, int) and 0 < value <= 1 << 20), default)


@torch.no_grad()
def _seconds(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> float:
    """Of one product of each shape, with inputs made beforehand."""
    pairs = [
        (torch.ones(ROWS, width, dtype=dtype, device=device), torch.ones(out, width, dtype=dtype, device=device))
        for width, out in shapes
    ]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for rows, weight in pairs:
        rows @ weight.T
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
