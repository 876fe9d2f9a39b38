"""Quoting of paths for the shell."""

from __future__ import annotations

import os
import shlex


def quoted(path: str) -> str:
    """A path quoted for the shell; characters that do not print are written as `$'…'`."""
    if path.isprintable():
        return shlex.quote(path)
    printable = (c if c.isprintable() and c not in "'\\" else _escaped(c) for c in path)
    return f"$'{''.join(printable)}'"


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
