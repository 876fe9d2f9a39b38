"""Writing to disk so that a crash leaves either the old file or the new one, and clear errors for disk problems."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry import changes

TEMPORARY = ".tmp-"
_CHUNK = 1 << 20
_REFUSALS = {
    errno.ENOSPC: (
        "no space left on",
        "free some space (cl-adapter gc deletes what the hub no longer needs) and try again",
    ),
    errno.EFBIG: ("a file would be larger than is allowed here (ulimit -f):", "raise the limit and try again"),
    errno.EDQUOT: ("the disk quota is used up on", "free some space (cl-adapter gc) and try again"),
    errno.EROFS: ("read-only file system at", "copy the hub to a writable disk, or name another folder"),
    errno.EACCES: ("no permission to write", "check the owner and mode of the hub, or name another folder"),
    errno.EPERM: ("not permitted to write", "check the owner and mode of the hub, or name another folder"),
}


def now() -> str:
    """The current time in the format of all records: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def storage_error(error: BaseException, path: Path | str) -> StorageError | None:
    """The `StorageError` for an operating system error that concerns the disk; None for any other error.

    The message says whether the current operation has changed anything, see `changes`.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and "(os error 28)" in str(error):  # safetensors reports a full disk as its own error
        number = errno.ENOSPC
    if number is None and re.search(r"\d+ requested and \d+ written", str(error)):  # and so does numpy
        number = errno.ENOSPC
    if number not in _REFUSALS:
        return None
    words, hint = _REFUSALS[number]
    return StorageError(f"{words} {path}{changes.told()}", hint)


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn a disk error inside the block into a `StorageError` that names the path."""
    try:
        yield
    except Exception as error:
        refused = storage_error(error, path)
        if refused is None:
            raise
        raise refused from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything to an open descriptor. Tests replace it to simulate a full disk."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def fsync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_dir(path: Path) -> None:
    """Flush a directory's entries to the disk."""
    fsync_file(path)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in place and sync it: for files in a directory that is not published yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_synced(path: Path, data: bytes) -> None:
    """Append to a file and sync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Replace a file atomically: readers and crashes see the old content or the new, never a part.

    Args:
        lasting: whether this counts as a change, see `changes`; an intent that can still be dropped does not.

    Raises:
            StorageError: the disk cannot be written; the old file is untouched.
    """
    temporary = path.with_name(temporary_name())
    with changes.operation(), storage_errors(path):
        try:
            write_synced(temporary, data)
            temporary.replace(path)
            if lasting:
                changes.happened()
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_dir(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` for text, in UTF-8."""
    atomic_write_bytes(path, text.encode())


def link_or_copy(source: Path, path: Path) -> None:
    """A file in a second place, without a copy where the file system can."""
    try:
        path.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, path)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as hex; the file is read in pieces of 1 MiB."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def temporary_name() -> str:
    """A file name that contains the process number, so that leftovers of dead processes can be recognised."""
    return f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"


def is_leftover(path: Path, max_age_s: float = 86_400.0) -> bool:
    """Whether a `.tmp-<pid>-…` path is a leftover: its process has ended, or it is older than `max_age_s` seconds."""
    pid = path.name.removeprefix(TEMPORARY).partition("-")[0]
    if not pid.isdigit() or not alive(int(pid)):
        return True
    with suppress(FileNotFoundError):
        return datetime.now(UTC).timestamp() - path.lstat().st_mtime > max_age_s
    return False


def alive(pid: int) -> bool:
    """Whether a process with this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def is_safe_relative(text: str) -> bool:
    """Whether the text is a plain relative path: no root, no `..`, no backslash, no empty part."""
    parts = text.split("/")
    bad = {"", ".", ".."}
    return (
        not bad.intersection(parts) and "\\" not in text and "\0" not in text and not PurePosixPath(text).is_absolute()
    )


def walk_files(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The regular files under a directory by relative path, and the relative paths of links and special files."""
    regular: dict[str, Path] = {}
    odd: list[str] = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        for name in [*folders, *names]:
            path = here / name
            relative = path.relative_to(root).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                odd.append(relative)
            elif path.is_file():
                regular[relative] = path
    return regular, sorted(odd)


def tree_bytes(path: Path) -> int:
    """Size of a file, or of all files under a directory; links count as zero bytes."""
    if path.is_symlink() or not path.exists():
        return 0
    found = 0
    for file in [path] if path.is_file() else walk_files(path)[0].values():
        with suppress(FileNotFoundError):  # another process is removing the same file
            found += file.stat().st_size
    return found


def remove_tree(path: Path) -> None:
    """Remove a file, a link (not its target) or a directory; a missing path is fine.

    Raises:
        StorageError: the disk cannot be written.
    """
    with storage_errors(path):
        if (path.is_symlink() or path.exists()) and not path.name.startswith(TEMPORARY):
            changes.happened()
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
        while path.exists():
            with suppress(FileNotFoundError):  # another process is removing the same file
                shutil.rmtree(path)
