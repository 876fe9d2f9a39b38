"""What Accelerate gives beside the loop: several processes as one run, and trackers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from typing import Any, TypeVar

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


def open_trackers(accelerator: Accelerator, project: str, config: Mapping[str, Any]) -> None:
    """Begin a run of the tracker that the accelerator was made with.

    Trackers print what they do. Standard output belongs to the verb's answer, so that it goes to standard error.
    """
    with redirect_stdout(sys.stderr):
        accelerator.init_trackers(project, config=dict(config))


def close_trackers(accelerator: Accelerator, name: str) -> None:
    """End the run of a tracker, if one was begun; what it prints goes to standard error."""
    with redirect_stdout(sys.stderr):
        accelerator.end_training()
        if name == "trackio" and accelerator.is_main_process:
            import trackio

            with suppress(RuntimeError):  # Accelerate ends its run alone, and it would tell so again at exit
                trackio.finish()
