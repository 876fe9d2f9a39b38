"""Reading `training.json`, what a version's folder says of its training. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import IntegrityError

NAME = "training.json"


def read(folder: Path) -> dict[str, Any]:
    """All that is recorded of a training; empty for a version that was not trained here.

    Raises:
        IntegrityError: the file cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from error


def history(folder: Path) -> list[dict[str, Any]]:
    """A row for each epoch; see `AdapterRecord.history`.

    Raises:
        IntegrityError: the file cannot be read.
    """
    try:
        return [dict(row) for row in read(folder).get("history") or ()]
    except (ValueError, TypeError) as error:
        raise _unreadable(folder / NAME, error) from error


def _unreadable(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(f"{path} cannot be read: {error}", "run cl-adapter verify")
