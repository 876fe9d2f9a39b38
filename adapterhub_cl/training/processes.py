"""What Accelerate gives beside the loop: several processes as one run, and trackers."""

from __future__ import annotations

from typing import TypeVar

from accelerate import Accelerator

from adapterhub_cl.errors import UnknownNameError, UsageError

T = TypeVar("T")


def everyones(value: T, accelerator: Accelerator) -> T:
    """The first process's value, in every process; waits for it."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    agreed: T = broadcast_object_list([value])[0]
    return agreed


def check_tracker(name: str) -> None:
    """Raise where `--log-with` names no tracker that Accelerate knows, or one that is not installed.

    Raises:
        UnknownNameError: Accelerate does not know it.
        UsageError: its package is missing.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise UnknownNameError("tracker", name, LOGGER_TYPE_TO_CLASS)
    if name not in {str(getattr(t, "value", t)) for t in get_available_trackers()}:
        raise UsageError(f"--log-with {name}: its package is not installed", f"pip install {name}")
