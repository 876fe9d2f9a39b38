"""One exception tree. The message of every error says in one line what is wrong; `hint` says what to do next.

The command line prints any of these as `error: …` and `hint: …` and exits with its code; nothing else in the project
prints or exits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class AdapterHubError(Exception):
    """Base class of all errors that this project raises on purpose.

    Args:
        message: one line, without a full stop.
        hint: the next step for the user, as one line or one command.
    """

    code: str = "failed"
    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(AdapterHubError):
    """A value that the user gave is invalid."""

    code = "usage"
    exit_code = 2


class UnknownNameError(UsageError):
    """A name is unknown; the hint has the closest names and the list."""

    code = "unknown_name"

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        parts = []
        question = f"did you mean {' or '.join(near)}? " if near else ""
        if known:
            shown = ", ".join(known[:20]) + (f", … ({len(known)} in all)" if len(known) > 20 else "")
            parts.append(f"known: {shown}")
        elif not hint:
            parts.append(f"there is no {what} here yet")
        if hint:
            parts.append(hint)
        super().__init__(f"unknown {what} {name!r}", (question + "; ".join(parts)).strip())
        self.name = name
        self.near = near


class DataError(AdapterHubError):
    """The data cannot be read or contain no examples."""

    code = "data"


class HubError(AdapterHubError):
    """There is no hub here, or this version cannot open it."""

    code = "hub"


class BaseModelError(AdapterHubError):
    """The base cannot be loaded, or is not the one that the hub was made for."""

    code = "base"


class BaseNotFoundError(BaseModelError):
    """There is no base where one was named."""

    code = "base_not_found"


class AdapterError(AdapterHubError):
    """An adapter is missing, does not fit, or cannot be used."""

    code = "adapter"


class IntegrityError(AdapterHubError):
    """A stored file is missing, truncated or changed."""

    code = "integrity"


class StorageError(AdapterHubError):
    """The disk is full, read-only, or not writable for this user. What was there before is untouched."""

    code = "storage"


class TrainingError(AdapterHubError):
    """Training cannot continue."""

    code = "training"


class TrainingInterrupted(TrainingError):
    """The user stopped training; a checkpoint was saved, and the hint says how to continue."""

    code = "interrupted"
    exit_code = 130


class LearnsElsewhere(TrainingError):
    """Another process learns from the traffic of the hub; nothing is wrong, and nothing was done."""

    code = "busy"


class EngineError(AdapterHubError):
    """The server that computes the answers refuses, answers wrongly, or is another one than it should be."""

    code = "engine"


class EngineDownError(EngineError):
    """The server that computes the answers cannot be reached, or broke off."""

    code = "engine_down"


class GateRefused(AdapterHubError):
    """The gate refused an adapter that forgets too much.

    Attributes:
        record: the `AdapterRecord` of the refused version, which is kept; None if no version was made.
        gate: the gate's whole decision, plain JSON: the limit, and in `effects` for each task the score `before` and
            `after`, the number of examples `n`, and the 95 % `interval` of the drop.
    """

    code = "gate"
    exit_code = 3

    def __init__(
        self, message: str, hint: str = "", *, record: Any = None, gate: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, hint)
        self.record, self.gate = record, dict(gate or {})


class ServerError(AdapterHubError):
    """A server cannot be reached, or does not answer as it should."""

    code = "server"


class ExportRefused(AdapterHubError):
    """An export or a server changes nothing, or loses more of the adapter's score than `--min-retention` allows."""

    code = "export"
    exit_code = 3


# How torch, cuBLAS, cuDNN, the driver and a CPU's allocator say that there is no memory.
_NO_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "std::bad_alloc",
    "alloc_failed", "cudaerrormemoryallocation", "cuda_error_out_of_memory", "defaultcpuallocator",
    "nvml_success == r internal assert", "failed to allocate",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in any of the forms that libraries have for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _NO_MEMORY)


def first_line(error: BaseException) -> str:
    """What another library's error says in its first line, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def count(number: int, one: str, several: str = "") -> str:
    """`1 task`, `3 tasks`, `1,200 versions`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
