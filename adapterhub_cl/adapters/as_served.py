"""A stored adapter on the base, computing as it does when it answers requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.adapters.lora import stored_adapter
from adapterhub_cl.bases.loading import LoadedBase


def spare_bytes(base: LoadedBase) -> int:
    """Memory that dequantised weights may use: on a CPU, their full size if that is below a quarter of free memory."""
    if base.device.type != "cpu" or base.info.quantization not in ("nf4", "fp4"):
        return 0
    needed = base.info.parameters * base.dtype.itemsize
    return needed if needed <= psutil.virtual_memory().available // 4 else 0


@contextmanager
def as_served(base: LoadedBase, folder: Path) -> Iterator[Any]:
    """The base with a stored adapter, frozen, computing as when it answers; removed at the end of the block."""
    with stored_adapter(base, folder) as model, fused(model, base.dtype, spare_bytes(base)):
        yield model
