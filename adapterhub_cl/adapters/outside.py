"""Folders outside of a hub that are filled completely or not at all, whatever stops the process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapterhub_cl.errors import UsageError
from adapterhub_cl.registry import changes, files

_MAKING = ".cl-adapter-making-"  # followed by the process number
_NAMES = ".names.json"  # inside it: the names of what is moved out of it once everything is written


@contextmanager
def filled(target: Path) -> Iterator[Path]:
    """A folder to write into; its content is moved to the target at the end of the block.

    It is inside the target, so leftovers of a killed process can be recognised; the next call removes them.

    Args:
        target: missing, or an empty folder; plain files and folders are written into it.

    Raises:
        UsageError: the target is not empty.
        StorageError: the disk cannot be written; the target is unchanged.
    """
    if target.is_symlink() and not target.exists():
        raise UsageError(f"{target} is a link to a folder that is not there", "name another one with -o")
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
            _readable(making)
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
        with suppress(OSError):  # everything is in place; the next call would remove the rest
            shutil.rmtree(making)
            files.fsync_dir(target)


def _readable(making: Path) -> None:
    """Give every file the mode that a new file gets here: safetensors writes files that nobody else can read, and the
    tool that the folder is for may run as somebody else."""
    usual = making / f"{_NAMES}.mode"
    usual.touch()
    mode = usual.stat().st_mode & 0o777
    usual.unlink()
    for path in files.walk_files(making)[0].values():
        path.chmod(mode)


def _clear(target: Path) -> None:
    """Remove what a dead process has left in a folder; raise if there is anything else."""
    if target.is_dir():
        for left in target.glob(f"{_MAKING}*"):
            number = left.name.removeprefix(_MAKING)
            if left.is_dir() and not left.is_symlink() and number.isdigit() and not files.alive(int(number)):
                with files.storage_errors(target):
                    _remove(left)
    if not target.is_dir() or any(target.iterdir()):
        raise UsageError(f"{target} is not an empty directory", "name a missing or empty one with -o")


def _remove(making: Path) -> None:
    """Remove a folder that was being filled, and what was already moved out of it."""
    names: list[str] = []
    with suppress(OSError, ValueError):
        found = json.loads((making / _NAMES).read_text(encoding="utf-8"))
        names = [name for name in found if isinstance(name, str) and files.is_safe_relative(name) and "/" not in name]
    for name in names:
        if not (making / name).exists():  # it was already moved
            path = making.parent / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    shutil.rmtree(making)
