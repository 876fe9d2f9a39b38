"""A store that several machines reach, and the one place where its errors become `StorageError`."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from adapterhub_cl.errors import AdapterHubError, StorageError, UsageError, first_line
from adapterhub_cl.registry import changes, hf_repository
from adapterhub_cl.registry.files import TEMPORARY, fsync_dir, fsync_file, storage_error, temporary_name
from adapterhub_cl.registry.names import check_local, is_name

BLOBS, VERSIONS = "blobs", "versions"
LARGEST_DOCUMENT = 16 << 20  # bytes of a version's document
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET = re.compile(r"(?<=://)([^/@]*?):[^/@]*@")
_DOCUMENT = re.compile(r"v([1-9][0-9]{0,8})\.json")
_FLAT = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory"}  # no folders: `mkdir` would make a bucket
_ABANDONED_S = 86_400.0
AGAIN = "check the network, then run the same command again: it continues where it stopped"
# Libraries behind fsspec, whose errors have no common base.
_LIBRARIES = {
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "fsspec",
    "gcsfs",
    "google",
    "httpx2",
    "huggingface_hub",
    "paramiko",
    "requests",
    "s3fs",
}


class RemoteStore:
    """A store, opened by its address.

    Attributes:
        url: the address as messages show it and as it is recorded, the same for all spellings: without a password, a
            folder as its real path.
    """

    def __init__(self, target: str) -> None:
        """Open the store at a folder's path or an fsspec URL; nothing is read or written yet.

        Raises:
            UsageError: no such kind of address, or a package that it needs is not installed.
        """
        if not target.strip():
            raise UsageError("the target is empty", "give a folder, or a URL such as s3://bucket/prefix")
        self._folder: Path | None = None
        self._fs: Any = None
        target = re.sub(r"^(file|local)://", "", target, flags=re.IGNORECASE)
        if not _URL.match(target):
            self._folder = check_local(target).resolve()  # signers are remembered by it: one spelling for one store
            self.url = str(self._folder)
            return
        from fsspec.core import url_to_fs

        self.url = _SECRET.sub(r"\1@", target).rstrip("/")
        try:
            self._fs, root = url_to_fs(target)
        except ImportError as error:
            how = "pip install 'adapterhub-cl[s3]'" if target.startswith("s3") else "install it"
            raise UsageError(f"{self.url} needs a package: {first_line(error)}", how) from error
        except ValueError as error:
            raise UsageError(f"{self.url} cannot be opened: {first_line(error)}", "use a folder or s3://…") from error
        self._root = str(root).rstrip("/")
        if _protocol(self._fs) in _FLAT | {hf_repository.PROTOCOL}:
            self.url = _SECRET.sub(r"\1@", f"{_protocol(self._fs)}://{self._root.lstrip('/')}")  # s3a:// is s3://
        if _protocol(self._fs) == hf_repository.PROTOCOL:
            hf_repository.check_address(self._root)

    @property
    def folder(self) -> Path | None:
        """The folder, if the store is one on this machine."""
        return self._folder

    # -- reading ---------------------------------------------------------------------------------

    def check_there(self) -> None:
        """Raise if there is no store.

        Raises:
            StorageError: nothing is at this address, or it cannot be reached.
        """
        with self.errors():
            there = self._folder.is_dir() if self._folder else self._fs.exists(self._at(VERSIONS))
        if not there:
            raise StorageError(f"nothing was pushed to {self.url}", f"check the address; {_PUSHES}")

    def listed(self) -> dict[str, list[int]]:
        """Name → the numbers of its versions, in order. What has no valid name is not part of the store."""
        found: dict[str, list[int]] = {}
        for name in self._names(VERSIONS):
            if is_name(name):
                numbers = [int(m[1]) for file in self._names(f"{VERSIONS}/{name}") if (m := _DOCUMENT.fullmatch(file))]
                found |= {name: sorted(numbers)} if numbers else {}
        return found

    def _names(self, path: str) -> list[str]:
        with self.errors():
            try:
                if self._folder:
                    return sorted(entry.name for entry in (self._folder / path).iterdir())
                self._fs.invalidate_cache()
                return sorted(PurePosixPath(str(one)).name for one in self._fs.ls(self._at(path), detail=False))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def read(self, path: str) -> bytes | None:
        """A small file; None if it is missing.

        Raises:
            StorageError: it is larger than any document, or the store cannot be read.
        """
        size = self.size(path)
        if size is None:
            return None
        if size > LARGEST_DOCUMENT:
            raise StorageError(f"{path} in {self.url} is too large to be a version's document", "remove it there")
        with self.errors(), self.opened(path) as file:
            return file.read(LARGEST_DOCUMENT)

    def read_many(self, paths: Collection[str]) -> dict[str, bytes]:
        """Small files that are there, several at a time where the store can do that."""
        with self.errors():
            if self._folder:
                return {path: raw for path in paths if (raw := self.read(path)) is not None}
            places = {self._fs._strip_protocol(self._at(path)): path for path in paths}
            found = self._fs.cat(list(places), on_error="return") if places else {}
            for raw in found.values():
                if isinstance(raw, Exception) and not isinstance(raw, FileNotFoundError):
                    raise raw
            return {places[place]: raw for place, raw in found.items() if isinstance(raw, bytes)}

    def size(self, path: str) -> int | None:
        """Size of a file in bytes; None if it is missing."""
        with self.errors():
            try:
                if self._folder:
                    return (self._folder / path).stat().st_size
                self._fs.invalidate_cache()
                return int(self._fs.info(self._at(path))["size"])
            except (FileNotFoundError, NotADirectoryError):
                return None

    @contextmanager
    def opened(self, path: str, start: int = 0) -> Iterator[IO[bytes]]:
        """A file opened for reading, from byte `start` on. Reads belong inside `errors()`."""
        with (self._folder / path).open("rb") if self._folder else self._fs.open(self._at(path), "rb") as file:
            file.seek(start)
            yield file

    # -- writing ---------------------------------------------------------------------------------

    def put(self, path: str, source: Path | bytes) -> None:
        """Write a file: afterwards it is there completely, or, where it fails, it is as before.

        Object stores do that themselves; in a folder the file is written beside its place and renamed.

        Raises:
            StorageError: it cannot be written.
        """
        with self.errors():
            if self._folder:
                _put_locally(self._folder / path, source)
                changes.happened()
                return
            place = self._at(path)
            self._make_parent(place)
            if isinstance(source, bytes):
                self._fs.pipe_file(place, source)
            else:
                self._fs.put_file(str(source), place)
            changes.happened()

    def put_new(self, path: str, content: bytes) -> bool:
        """Write a small file unless there is one, in one step that only one of several writers can do.

        Returns:
            Whether the file has this content now: False if another writer's is there.

        Raises:
            StorageError: it cannot be written; it may still arrive, if the connection broke off.
        """
        with self.errors():
            try:
                if self._folder:
                    _link_locally(self._folder / path, content)
                else:
                    self._make_parent(self._at(path))
                    if _protocol(self._fs) == hf_repository.PROTOCOL:
                        hf_repository.create_file(self._fs, self._at(path), content)
                    else:
                        self._fs.pipe_file(self._at(path), content, mode="create")
                changes.happened()
                return True
            except OSError as error:
                # The library may have sent it twice, and have met its own file at the second time.
                if not isinstance(error, FileExistsError) and error.errno != errno.EINVAL:
                    raise
                found = self.read(path)
                if found is None:
                    raise
                return found == content

    def remove(self, path: str) -> None:
        """Delete a file; a missing one is fine."""
        with self.errors():
            try:
                if self._folder:
                    (self._folder / path).unlink()
                else:
                    self._fs.rm_file(self._at(path))
                changes.happened()
            except FileNotFoundError:
                return

    def sizes(self, folder: str) -> dict[str, int]:
        """Every file below a folder: its path in the store → its size in bytes."""
        with self.errors():
            try:
                if self._folder:
                    root = self._folder
                    there = [path for path in (root / folder).rglob("*") if path.is_file()]
                    return {path.relative_to(root).as_posix(): path.stat().st_size for path in there}
                self._fs.invalidate_cache()
                found = self._fs.find(self._at(folder), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            cut = len(self._fs._strip_protocol(self._root)) + 1
            return {str(path)[cut:]: int(about["size"]) for path, about in found.items()}

    def _make_parent(self, place: str) -> None:
        """Make what a file lies in, where a store has such a thing."""
        if _protocol(self._fs) == hf_repository.PROTOCOL:
            hf_repository.make_repository(self._fs, self._root)
        elif _protocol(self._fs) not in _FLAT:
            self._fs.makedirs(str(PurePosixPath(place).parent), exist_ok=True)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    # -- errors ----------------------------------------------------------------------------------

    @contextmanager
    def errors(self, *, missing: bool = False) -> Iterator[None]:
        """Turn what a library of a store raises into a `StorageError` with the next step.

        Args:
            missing: let a FileNotFoundError through.
        """
        try:
            yield
        except AdapterHubError:
            raise
        except FileNotFoundError as error:
            if missing:
                raise
            raise self._told(error) or error from error
        except Exception as error:
            told = self._told(error)
            if told is None:
                raise
            raise told from error

    def _told(self, error: Exception) -> StorageError | None:
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, PermissionError) or type(error).__name__ in (
            "NoCredentialsError",
            "PartialCredentialsError",
        ):
            hint = "check its owner and mode" if self._folder else "check your credentials and what they allow"
            return StorageError(f"no permission for {self.url}: {first_line(error)}", hint)
        if isinstance(error, FileNotFoundError):
            hint = "check the address; a bucket must exist before anything is pushed to it"
            return StorageError(f"{self.url} cannot be found: {first_line(error)}", hint)
        if isinstance(error, NotADirectoryError | FileExistsError):
            return StorageError(f"{self.url} is not a folder", "name another target")
        if refused := storage_error(error, self.url):
            return refused
        if isinstance(error, OSError | EOFError | TimeoutError) or library in _LIBRARIES:
            return StorageError(f"{self.url} cannot be reached, or broke off: {first_line(error)}", AGAIN)
        return None


_PUSHES = "cl-adapter push NAME TARGET makes it"


def blob(sha256: str) -> str:
    """The path of a file in the store, by the SHA-256 of its content."""
    return f"{BLOBS}/{sha256[:2]}/{sha256}"


def document(name: str, number: int) -> str:
    """The path of a version's document in the store."""
    return f"{VERSIONS}/{name}/v{number}.json"


def _protocol(fs: Any) -> str:
    return fs.protocol if isinstance(fs.protocol, str) else str(fs.protocol[0])


def _put_locally(final: Path, source: Path | bytes) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    for old in final.parent.glob(f"{TEMPORARY}*"):  # of a push that was killed, perhaps on another machine
        with suppress(FileNotFoundError):
            if time.time() - old.lstat().st_mtime > _ABANDONED_S:
                old.unlink()
    beside = final.with_name(temporary_name())
    write: Callable[[], object]
    write = (
        (lambda: beside.write_bytes(source)) if isinstance(source, bytes) else lambda: shutil.copyfile(source, beside)
    )
    try:
        write()
        fsync_file(beside)
        beside.replace(final)
        fsync_dir(final.parent)
    finally:
        beside.unlink(missing_ok=True)


def _link_locally(final: Path, content: bytes) -> None:
    """Create a file with its content, or raise FileExistsError: a link is made of it only where there is none."""
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = final.with_name(temporary_name())
    try:
        beside.write_bytes(content)
        fsync_file(beside)
        os.link(beside, final)
        fsync_dir(final.parent)
    finally:
        beside.unlink(missing_ok=True)
