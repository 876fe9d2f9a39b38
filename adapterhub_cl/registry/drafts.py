"""Drafts: a version's files while they are being written, in a directory that readers ignore."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from adapterhub_cl.errors import AdapterError
from adapterhub_cl.registry import files, manifests


def fault(point: str) -> None:
    """Does nothing. Tests replace it to stop the process between two steps of publishing."""


class Draft:
    """A directory to write a version's files into; removed at the end of the `with` block unless published.

    Attributes:
        name: the adapter's name.
        path: where to write; `manifest.json` must not be there, because publishing writes it.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._parent = directory
        self.path = directory / files.temporary_name()
        self.published = False
        with files.storage_errors(directory):
            for attempt in range(5):
                directory.mkdir(parents=True, exist_ok=True)
                try:
                    self.path.mkdir()
                    break
                except FileNotFoundError:  # another process has just removed the empty parent
                    if attempt == 4:
                        raise

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.discard()
        refused = files.storage_error(error, self._parent) if error is not None else None
        if refused is not None:
            raise refused from error

    def discard(self) -> None:
        """Remove the draft; does nothing once it is published."""
        if not self.published:
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):
                self._parent.rmdir()  # succeeds only if empty: a name without versions leaves nothing behind

    def seal(self) -> dict[str, dict[str, Any]]:
        """Sync all files, make them read-only, and hash them: relative path → {sha256, bytes}.

        Raises:
            AdapterError: there are no files, or a link, a special file or a `manifest.json` among them.
            StorageError: the disk cannot be written.
        """
        regular, odd = files.walk_files(self.path)
        if odd:
            raise AdapterError(f"{odd[0]} in the draft of {self.name} is a link or special file", "write a plain file")
        if manifests.FILE_NAME in regular:
            raise AdapterError(
                f"the draft of {self.name} contains a {manifests.FILE_NAME}", "remove it: the registry writes that file"
            )
        if not regular:
            raise AdapterError(f"the draft of {self.name} is empty", "write the adapter's files into draft.path first")
        sealed = {}
        with files.storage_errors(self.path):
            for relative, path in sorted(regular.items()):
                sealed[relative] = {"sha256": files.sha256_file(path), "bytes": path.stat().st_size}
                files.fsync_file(path)
                path.chmod(0o444)
            for folder in sorted({path.parent for path in regular.values()} - {self.path}):
                files.fsync_dir(folder)
        return sealed

    def move_to(self, final: Path, manifest_text: str) -> None:
        """Write the manifest and rename the directory to its final name, all synced.

        Raises:
            StorageError: the disk cannot be written; the draft stays where it was.
        """
        manifest = self.path / manifests.FILE_NAME
        with files.storage_errors(final.parent):
            files.write_synced(manifest, manifest_text.encode())
            manifest.chmod(0o444)
            files.fsync_dir(self.path)
            fault("manifest written")
            self.path.rename(final)  # fails if a version is already there
        self.published = True

    def move_back(self, final: Path) -> None:
        """Undo `move_to` as far as the disk allows; `verify` lists what is left over."""
        with suppress(OSError):
            final.rename(self.path)
            self.published = False
