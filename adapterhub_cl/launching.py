"""What `accelerate launch` and torchrun set in this process's environment. Does not import torch, so that bad launches
fail early."""

from __future__ import annotations

import os

from adapterhub_cl.errors import UsageError

# The variables of `accelerate launch` for ways of dividing one model among processes.
SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def processes() -> int:
    """How many processes were started together; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int | None:
    """The number of this process on its machine, from 0; None without a launcher."""
    rank = _number("LOCAL_RANK", -1)
    return None if rank < 0 else rank


def is_helper_process() -> bool:
    """Whether this is one of several processes, but not the first one, which does all reporting."""
    return any(os.environ.get(name, "0") not in ("", "0", "-1") for name in ("RANK", "LOCAL_RANK"))


def refuse_sharding() -> None:
    """Raise if the launcher was asked to divide the model: the loop trains whole adapters on a whole base.

    Raises:
        UsageError: the model would be divided.
    """
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise UsageError(
                f"{name} is not supported: each process holds the whole base",
                "data parallelism (DDP) is supported: accelerate launch --multi_gpu --num_processes N -m cl_adapter …",
            )


def one_process(verb: str) -> None:
    """Raise for a verb that several processes would each carry out and record.

    Raises:
        UsageError: several processes were started together.
    """
    refuse_sharding()
    if processes() > 1:
        raise UsageError(f"{verb} runs in one process", "start it without accelerate launch")


def _number(variable: str, otherwise: int) -> int:
    try:
        return int(os.environ.get(variable) or otherwise)
    except ValueError:
        return otherwise
