"""How much of the machine a training used: its products as a share of the best ones that the machine does."""

from __future__ import annotations

import math
import time
from itertools import product
from typing import Any

import torch


def multiplied(model: Any) -> int:
    """The weights that a token is multiplied with: those of the base but its table of tokens, and the adapter's."""
    table = model.get_input_embeddings().weight.numel()
    sizes = (
        (getattr(p, "quant_state", None) and math.prod(p.quant_state.shape)) or p.numel() for p in model.parameters()
    )
    return sum(sizes) - table


@torch.no_grad()
def best_product() -> float:
    """Floating-point operations a second of the machine's best matrix product now: square ones, in fp32 and bf16."""
    found = 0.0
    for dtype, size in product((torch.float32, torch.bfloat16), (1024, 2048)):
        one, other = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        one @ other
        for _ in range(4):
            started = time.perf_counter()
            one @ other
            found = max(found, 2 * size**3 / (time.perf_counter() - started))
    return found
