"""Drafts: a version's files while they are being written, in a directory that no reader looks into."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from adapterhub_cl.errors import AdapterError
from adapterhub_cl.registry import files, manifests


def fault(point: str) -> None:
    """Does nothing. Tests replace it to stop the process between two steps of a publication."""


class Draft:
    """A directory to write a version's files into; removed at the end of the `with` block unless published.

    Attributes:
        name: the adapter's name.
        path: where to write; `manifest.json` is written at publication and must not be there.
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
                except FileNotFoundError:  # another process just removed the empty parent
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
                self._parent.rmdir()  # only when empty: a name without versions leaves no trace

    def seal(self) -> dict[str, dict[str, Any]]:
        """Sync all files, make them read-only, and hash them: relative path → {sha256, bytes}.

        Raises:
            AdapterError: there are no files, a link or special file, or a `manifest.json`.
            StorageError: the disk refused.
        """
        regular, odd = files.walk_files(self.path)
        if odd:
            raise AdapterError(f"{odd[0]} in the draft of {self.name} is a link or special file", "write a plain file")
        if manifests.FILE_NAME in regular:
            raise AdapterError(f"the draft of {self.name} has a {manifests.FILE_NAME}", "the registry writes that file")
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
        """Write the manifest and give the directory its final name, all synced.

        Raises:
            StorageError: the disk refused; the draft is where it was.
        """
        manifest = self.path / manifests.FILE_NAME
        with files.storage_errors(final.parent):
            files.write_synced(manifest, manifest_text.encode())
            manifest.chmod(0o444)
            files.fsync_dir(self.path)
            fault("manifest written")
            self.path.rename(final)  # refuses where a version is already there
        self.published = True

    def move_back(self, final: Path) -> None:
        """Undo `move_to`, as far as the disk allows; what stays is named by `verify`."""
        with suppress(OSError):
            final.rename(self.path)
            self.published = False
