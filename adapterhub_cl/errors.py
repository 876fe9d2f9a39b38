"""One exception tree. Every error says in one line what is wrong; `hint` says what to do next.

The command line turns any of these into `error: …` plus `hint: …` and the exit code;
nothing else in the project prints or exits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class AdapterHubError(Exception):
    """Base of all errors that this project raises on purpose.

    Args:
        message: one line, no trailing full stop needed.
        hint: the next step for the user, as one line or one command.
    """

    code: str = "failed"
    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(AdapterHubError):
    """A value that the user gave is not one that can be used."""

    code = "usage"
    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not among the known ones; the hint carries the nearest ones and the list."""

    code = "unknown_name"

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        parts = []
        question = f"did you mean {' or '.join(near)}? " if near else ""
        if known:
            shown = ", ".join(known[:20]) + (f", … ({len(known)} in all)" if len(known) > 20 else "")
            parts.append(f"known: {shown}")
        if hint:
            parts.append(hint)
        super().__init__(f"unknown {what} {name!r}", (question + "; ".join(parts)).strip())
        self.name = name
        self.near = near


class DataError(AdapterHubError):
    """The data cannot be read or makes no examples."""

    code = "data"


class HubError(AdapterHubError):
    """There is no hub here, or what is here is not one that this version can open."""

    code = "hub"


class BaseModelError(AdapterHubError):
    """The base cannot be loaded, or is not the one that the hub was made for."""

    code = "base"


class AdapterError(AdapterHubError):
    """An adapter does not fit, is not there, or cannot be used."""

    code = "adapter"


class IntegrityError(AdapterHubError):
    """A stored file is missing, truncated or not the one that was written."""

    code = "integrity"


class StorageError(AdapterHubError):
    """The disk refused: full, read-only, or not permitted. What was there before is untouched."""

    code = "storage"


class TrainingError(AdapterHubError):
    """Training cannot go on."""

    code = "training"


class TrainingInterrupted(TrainingError):
    """Training was stopped by the user; a checkpoint was kept and the hint says how to go on."""

    code = "interrupted"
    exit_code = 130


class GateRefused(AdapterHubError):
    """The gate refused an adapter whose forgetting is over budget.

    Attributes:
        record: the `AdapterRecord` of the version that was refused and is kept; None where nothing was made.
        gate: the gate's whole decision, plain JSON: the bound, and in `effects` for each task the score `before` and
            `after`, the number of examples `n`, and the 95 % `interval` of the drop.
    """

    code = "gate"
    exit_code = 3

    def __init__(
        self, message: str, hint: str = "", *, record: Any = None, gate: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, hint)
        self.record, self.gate = record, dict(gate or {})
