"""Several processes of `accelerate launch` as one run."""

from __future__ import annotations

from typing import TypeVar

from accelerate import Accelerator

T = TypeVar("T")


def everyones(value: T, accelerator: Accelerator) -> T:
    """The first process's value, in every process; waits for it."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    agreed: T = broadcast_object_list([value])[0]
    return agreed
