"""Tracks whether an operation has changed anything yet, so that an error message can say so correctly.

Every lasting change is counted: a committed transaction, a file put in place, a file removed. Temporary files of dead
processes, and files that nobody reads yet, do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_count = 0
_begun: ContextVar[int | None] = ContextVar("begun", default=None)


def happened() -> None:
    global _count
    _count += 1


@contextmanager
def operation() -> Iterator[None]:
    """Inside this block, error messages report what has changed since it began; nested blocks use the outermost."""
    if _begun.get() is not None:
        yield
        return
    token = _begun.set(_count)
    try:
        yield
    finally:
        _begun.reset(token)


def told() -> str:
    """The ending of an error message that says whether anything was changed; empty outside of an operation."""
    begun = _begun.get()
    if begun is None:
        return ""
    return "; nothing was changed" if begun == _count else "; the changes made before the error remain"
