"""What an operation has changed by now, so that the message of a failure is right about it.

Every lasting change is counted: a committed transaction, a file put in place, something removed. A file of a process
that is gone, or one that nobody reads yet, is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_count = 0
_begun: ContextVar[int | None] = ContextVar("begun", default=None)


def happened() -> None:
    """Count one lasting change."""
    global _count
    _count += 1


@contextmanager
def operation() -> Iterator[None]:
    """Messages inside the block tell what has changed since its begin; of nested blocks the outermost counts."""
    if _begun.get() is not None:
        yield
        return
    token = _begun.set(_count)
    try:
        yield
    finally:
        _begun.reset(token)


def told() -> str:
    """How a message about a refusal ends; empty outside of an operation, where nobody can tell."""
    begun = _begun.get()
    if begun is None:
        return ""
    return "; nothing was changed" if begun == _count else "; what was done before that stays"
