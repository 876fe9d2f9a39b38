"""What `accelerate launch` and torchrun set in this process's environment. Does not import torch, so that bad launches
fail early."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from adapterhub_cl.errors import AdapterHubError, UsageError

F = TypeVar("F", bound=Callable[..., Any])

FSDP = "ACCELERATE_USE_FSDP"
# The variables of `accelerate launch` for ways of dividing one model among processes that cannot be used here.
SHARDED = {
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


def divides_base() -> bool:
    """Whether the launcher was asked to divide the base among the processes (FSDP2)."""
    return os.environ.get(FSDP, "").lower() in ("true", "1")


def refuse_sharding() -> None:
    """Raise if the launcher was asked to divide the model in a way that cannot be used.

    Raises:
        UsageError: the model would be divided otherwise than by FSDP2.
    """
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise UsageError(
                f"{name} is not supported",
                "accelerate launch --multi_gpu divides the rows, --use_fsdp --fsdp_version 2 the base as well",
            )
    if divides_base() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("FSDP of version 1 is not supported", "accelerate launch --use_fsdp --fsdp_version 2 …")


# What tells Accelerate and torch that there are other processes.
_TOGETHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", FSDP)
_calls = 0


def one_leads(pack: Callable[[Any], Any], unpack: Callable[..., Any]) -> Callable[[F], F]:
    """A method that one process carries out for all: the first one works as if it were alone, the others wait and
    return what it returned.

    Args:
        pack: what the method returned → JSON, by which the others find it; `unpack` is called with that and the
            method's own arguments, and gives what they return.

    Raises:
        UsageError: several processes were started, but not by a launcher through which they find each other.
        AdapterHubError: in the waiting processes, what the first one ended with.
    """

    def wrap(method: F) -> F:
        @functools.wraps(method)
        def call(*args: Any, **given: Any) -> Any:
            global _calls
            if processes() == 1 and not divides_base():
                return method(*args, **given)
            refuse_sharding()
            _calls += 1
            store, key = _store(), f"cl-adapter/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_calls}"
            if is_helper_process():
                store.wait([key], timedelta(days=365))
                packed, message, hint, code = json.loads(store.get(key))
                if message:
                    error = AdapterHubError(message, hint)
                    error.exit_code = code
                    raise error
                return unpack(packed, *args, **given)
            told: tuple[Any, str, str, int] = (None, f"the first process has stopped in {method.__name__}", "", 1)
            try:
                with _alone():
                    found = method(*args, **given)
                told = (pack(found), "", "", 0)
                return found
            except AdapterHubError as error:
                told = (None, error.message, error.hint, error.exit_code)
                raise
            finally:
                store.set(key, json.dumps(told))

        return call  # type: ignore[return-value]

    return wrap


def _store() -> Any:
    """The key-value store of this launch, which torchrun keeps for its processes.

    Raises:
        UsageError: there is none.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", 0)
    if not host or not port:
        raise UsageError(
            f"{processes()} processes were announced (WORLD_SIZE), but not where they meet (MASTER_ADDR, MASTER_PORT)",
            "start them by accelerate launch, or start one",
        )
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true"
    return TCPStore(host, port, is_master=not kept and not is_helper_process(), wait_for_workers=False)


@contextmanager
def _alone() -> Iterator[None]:
    """Within the block neither torch nor Accelerate know of other processes."""
    from accelerate.state import AcceleratorState, PartialState

    before = {name: os.environ.pop(name) for name in _TOGETHER if name in os.environ}
    states = (PartialState._shared_state, AcceleratorState._shared_state)
    kept = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, old in zip(states, kept, strict=True):
            state.clear()
            state.update(old)
        os.environ.update(before)


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
