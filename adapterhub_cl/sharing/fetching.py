"""Fetching the files of a version from a store: only those that the hub lacks, each checked by its SHA-256.

They are collected in `<hub>/.tmp-<process>-pull`, which the next pull takes over after a kill; if there is none,
`verify --repair` and `gc` remove it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterHubError, IntegrityError, StorageError
from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.registry.files import TEMPORARY, is_leftover, remove_tree, sha256_file
from adapterhub_cl.registry.remote_store import AGAIN, RemoteStore, blob

_END = "-pull"
_CHUNK = 4 << 20  # bytes
_ONE = threading.Lock()  # the folder is this process's, so its threads take turns


@contextmanager
def gathering(hub: Path) -> Iterator[Path]:
    """A folder of this process for what is fetched, with what an earlier pull left. It stays if the network broke
    off or the process was stopped, so that the next pull continues; else it is removed at the end of the block."""
    mine = hub / f"{TEMPORARY}{os.getpid()}{_END}"
    with _ONE:
        with storage_errors(hub):
            for left in sorted(hub.glob(f"{TEMPORARY}*{_END}")):
                if left != mine and is_leftover(left):
                    with suppress(OSError):  # another pull has just taken it, or there is one already
                        left.rename(mine)
            mine.mkdir(exist_ok=True)
        try:
            yield mine
        except AdapterHubError as error:
            if not (isinstance(error, StorageError) and error.hint == AGAIN):
                shutil.rmtree(mine, ignore_errors=True)
            raise
        remove_tree(mine)


class Fetcher:
    """Brings files of a store into the folder, each under its SHA-256.

    Attributes:
        fetched: bytes that came from the store.
    """

    def __init__(self, registry: Registry, store: RemoteStore, folder: Path) -> None:
        self.store, self.folder, self.fetched = store, folder, 0
        self._hub = registry.path
        self._known = {
            str(row["sha256"]): record.place / name
            for record in registry.adapters(all_versions=True)
            for name, row in record.manifest["files"].items()
        }

    def check_space(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise if the disk has no room for what is missing of these files.

        Raises:
            StorageError: there is not enough space.
        """
        wanted = sum(int(row["bytes"]) for row in rows.values() if not (self.folder / row["sha256"]).exists())
        with storage_errors(self._hub):
            free = shutil.disk_usage(self._hub).free
        if wanted > free:
            raise StorageError(
                f"no space left on {self._hub}: {wanted:,} bytes are to be fetched, {free:,} are free",
                "free some space (cl-adapter gc deletes what the hub no longer needs) and try again",
            )

    def bring(self, name: str, row: Mapping[str, Any], of: str) -> Path:
        """A file of a version, complete and checked.

        Args:
            row: its SHA-256 and its size in bytes.
            of: the version, for messages.

        Raises:
            IntegrityError: what the store has is not what was signed.
            StorageError: the store cannot be read, or the disk cannot be written.
        """
        sha256, size = str(row["sha256"]), int(row["bytes"])
        final = self.folder / sha256
        if final.exists() and final.stat().st_size == size and sha256_file(final) == sha256:
            return final
        known = self._known.get(sha256)
        if known is not None and known.is_file() and not known.is_symlink() and known.stat().st_size == size:
            with storage_errors(self._hub):
                shutil.copyfile(known, final)
            if sha256_file(final) == sha256:
                return final
        self._check_size(name, sha256, size, of)
        part = self.folder / f"{sha256}.part"
        self._continue(part, sha256, size)
        if part.stat().st_size != size or sha256_file(part) != sha256:
            part.unlink()
            raise IntegrityError(
                f"{name} of {of} in {self.store.url} was changed: its SHA-256 is not the signed one", _mend(sha256)
            )
        with storage_errors(self._hub):
            part.replace(final)
        return final

    def _check_size(self, name: str, sha256: str, size: int, of: str) -> None:
        found = self.store.size(blob(sha256))
        if found is None:
            raise IntegrityError(f"{name} of {of} is missing in {self.store.url}", "push the version again")
        if found != size:
            raise IntegrityError(
                f"{name} of {of} in {self.store.url} has {found:,} of {size:,} bytes", "push the version again"
            )

    def _continue(self, part: Path, sha256: str, size: int) -> None:
        """Fetch what is missing of a file, from where an earlier pull stopped."""
        with storage_errors(self._hub):
            have = part.stat().st_size if part.exists() else 0
            if have > size:
                part.unlink()
                have = 0
        if have == size and size:
            return
        with self.store.errors(), self.store.opened(blob(sha256), have) as source:
            with storage_errors(self._hub):
                target = part.open("ab")
            with target:
                while have < size:
                    chunk = source.read(min(_CHUNK, size - have))
                    if not chunk:
                        raise EOFError("the file ended early")
                    with storage_errors(self._hub):
                        target.write(chunk)
                        target.flush()
                    have += len(chunk)
                    self.fetched += len(chunk)


def _mend(sha256: str) -> str:
    return f"remove {blob(sha256)} there, and push the version again from a hub that has it"
