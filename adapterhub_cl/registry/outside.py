"""Folders outside of a hub that are filled wholly or not at all, whatever stops the process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapterhub_cl.errors import UsageError
from adapterhub_cl.registry import changes, files

_MAKING = ".cl-adapter-making-"  # then the number of the process
_NAMES = ".names.json"  # within it: what is moved out of it when all is written


@contextmanager
def filled(target: Path) -> Iterator[Path]:
    """A folder to write into; what is there at the end of the block is moved to the target.

    It lies in the target, so that what a process that was killed has left there is known for what it is: the next call
    clears it away.

    Args:
        target: missing, or an empty folder; plain files and folders are written into it.

    Raises:
        UsageError: there is something in the target.
        StorageError: the disk refused; the target is as it was.
    """
    made = not target.exists()
    if not made:
        _clear(target)
    making = target / f"{_MAKING}{os.getpid()}"
    with changes.operation(), files.storage_errors(target):
        try:
            making.mkdir(parents=True)
            yield making
            names = sorted(path.name for path in making.iterdir())
            for path in files.walk_files(making)[0].values():
                files.fsync_file(path)
            files.write_synced(making / _NAMES, json.dumps(names).encode())
            files.fsync_dir(making)
            for name in names:
                (making / name).rename(target / name)
            changes.happened()
        except BaseException:
            with suppress(OSError):
                _remove(making)
                if made:
                    target.rmdir()
            raise
        with suppress(OSError):  # all is there; the next call would clear the rest away
            shutil.rmtree(making)
            files.fsync_dir(target)


def _clear(target: Path) -> None:
    """Take away what a process that is gone has left in a folder; raise where there is anything else."""
    if target.is_dir():
        for left in target.glob(f"{_MAKING}*"):
            number = left.name.removeprefix(_MAKING)
            if left.is_dir() and not left.is_symlink() and number.isdigit() and not files.alive(int(number)):
                with files.storage_errors(target):
                    _remove(left)
    if not target.is_dir() or any(target.iterdir()):
        raise UsageError(f"{target} is not an empty directory", "name a missing or empty one with -o")


def _remove(making: Path) -> None:
    """Remove a folder that is being filled, and what was moved out of it already."""
    names: list[str] = []
    with suppress(OSError, ValueError):
        found = json.loads((making / _NAMES).read_text(encoding="utf-8"))
        names = [name for name in found if isinstance(name, str) and files.is_safe_relative(name) and "/" not in name]
    for name in names:
        if not (making / name).exists():  # it was moved
            path = making.parent / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    shutil.rmtree(making)
