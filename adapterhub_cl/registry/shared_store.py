"""The versions of a hub in a store that several machines reach, and this machine's copies of them.

A file is in the store under its SHA-256, a version is its manifest. The index decides which manifests count; the copies
in `<hub>/adapters` are made when a version's path is first used. See docs/decisions/053-index-in-postgresql.md.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from adapterhub_cl.errors import AdapterHubError, HubError, IntegrityError
from adapterhub_cl.registry import files, manifests, store_identity
from adapterhub_cl.registry.names import is_name
from adapterhub_cl.registry.store_identity import IDENTITY

if TYPE_CHECKING:
    from adapterhub_cl.progress import Reporter
    from adapterhub_cl.registry.hubfile import HubFile
    from adapterhub_cl.registry.remote_store import RemoteStore

MANIFESTS, BLOBS = "manifests", "blobs"
_MANIFEST = re.compile(r"manifests/([^/]+)/v([1-9][0-9]{0,8})\.json")
LIVE_MANIFESTS = "SELECT manifest FROM versions WHERE status <> 'deleted'"
_TRIES = 3  # a version whose samples are removed while it is fetched is fetched again
Files = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class SharedStore:
    """A store and the folder of this machine's copies.

    Attributes:
        url: as in `hub.toml`.
        folder: `<hub>/adapters`.
        now: name and number of a version → its manifest in the index; None if it has none.
        owner: the hub that the store belongs to.
    """

    url: str
    folder: Path
    now: Callable[[str, int], str | None] = field(default=lambda name, number: None, repr=False, compare=False)
    owner: Callable[[], HubFile] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def remote(self) -> RemoteStore:
        from adapterhub_cl.registry.remote_store import RemoteStore  # imports fsspec, which listing does not need

        return RemoteStore(self.url)

    # -- whose store it is -----------------------------------------------------------------------

    def claim(self, hub_file: HubFile) -> None:
        """Record whose store it is.

        Raises:
            HubError: it is the store of another hub.
            StorageError: it cannot be reached or written, for example because the bucket is missing.
        """
        text = store_identity.content(hub_file)
        if self.remote.put_new(IDENTITY, text):
            return
        if not self.remote.sizes(MANIFESTS):  # an `init` was killed, and nothing was published since
            self.remote.put(IDENTITY, text)
            return
        raise HubError(
            f"the store {self.remote.url} belongs to another hub",
            "give the --index of that hub to join it, or another --store",
        )

    def strangeness(self) -> AdapterHubError | None:
        """Why nothing may be written to what is at the address; None if it is this hub's store."""
        return None if self.owner is None else store_identity.strangeness(self.remote, self.owner())

    def check_mine(self) -> None:
        """Look before each write whether the store is there, and this hub's.

        Raises:
            StorageError: there is none, or it does not say whose it is.
            HubError: it is the store of another hub.
        """
        if (wrong := self.strangeness()) is not None:
            raise wrong

    def reclaim(self) -> bool:
        """Write `hub.json` again where it was lost or damaged; False where it is as it should be.

        Raises:
            StorageError: the store has no version either, so it may be a folder whose disk is not mounted.
            HubError: it is the store of another hub.
        """
        wrong = self.strangeness()
        if wrong is None or self.owner is None:
            return False
        if isinstance(wrong, HubError) or not self._has_mine():
            raise wrong
        self.remote.put(IDENTITY, store_identity.content(self.owner()))
        return True

    def _has_mine(self) -> bool:
        """Whether a version in the store is one of this hub, as its index describes it."""
        there = self.texts(self.versions())
        return any(self.now(name, number) == text for (name, number), text in there.items())

    # -- versions in the store -------------------------------------------------------------------

    def versions(self) -> set[tuple[str, int]]:
        """Name and number of each manifest in the store."""
        found = (_MANIFEST.fullmatch(path) for path in self.remote.sizes(MANIFESTS))
        return {(match[1], int(match[2])) for match in found if match and is_name(match[1])}

    def numbers(self, name: str) -> list[int]:
        """The numbers of an adapter's manifests in the store."""
        found = (_MANIFEST.fullmatch(path) for path in self.remote.sizes(f"{MANIFESTS}/{name}"))
        return sorted(int(match[2]) for match in found if match and match[1] == name)

    def manifest(self, name: str, number: int) -> str | None:
        """The text of a manifest; None if it is missing."""
        raw = self.remote.read(manifest_at(name, number))
        return None if raw is None else raw.decode(errors="replace")

    def texts(self, versions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """The texts of manifests, of those that are there."""
        paths = {manifest_at(name, number): (name, number) for name, number in versions}
        return {paths[path]: raw.decode(errors="replace") for path, raw in self.remote.read_many(paths).items()}

    def parsed(self, name: str, number: int) -> tuple[dict[str, Any], str]:
        """A manifest and its text.

        Raises:
            IntegrityError: it is missing or invalid.
        """
        text = self.manifest(name, number)
        if text is None:
            raise IntegrityError(
                f"{manifest_at(name, number)} is missing in {self.remote.url}", "see cl-adapter verify"
            )
        return manifests.parse(text, self.folder / name / f"v{number}" / manifests.FILE_NAME), text

    def lacking(self, about: Files, there: Mapping[str, int] | None = None) -> str:
        """The first of a version's files that the store does not have in full; empty if it has all.

        Args:
            there: all files of the store, where they are known.
        """
        for relative, row in about.items():
            path = blob_of(row)
            size = self.remote.size(path) if there is None else there.get(path)
            if size != row["bytes"]:
                return relative
        return ""

    def changed(self, texts: Iterable[str], reporter: Reporter) -> set[str]:
        """Read the files that these manifests name, and return the paths in the store of those with another content.
        What is missing or incomplete is left to `lacking`."""
        sizes, rows = self.remote.sizes(BLOBS), {blob_of(row): row for text in texts for row in _files_of(text)}
        whole = sorted(path for path, row in rows.items() if sizes.get(path) == row["bytes"])
        found = set()
        with reporter.piece(f"reading {self.remote.url}", len(whole)) as advance:
            for path in whole:
                with suppress(FileNotFoundError):  # `gc` of another machine deleted it
                    if self._sha256(path) != rows[path]["sha256"]:
                        found.add(path)
                advance()
        return found

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self.remote.errors(missing=True), self.remote.opened(path) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    # -- writing ---------------------------------------------------------------------------------

    def upload(self, directory: Path, about: Files) -> None:
        """Send the files that the store does not have yet."""
        self.check_mine()
        for relative, row in about.items():
            if self.remote.size(blob_of(row)) != row["bytes"]:
                self.remote.put(blob_of(row), directory / relative)

    def restore(self, directory: Path, about: Files, wrong: set[str]) -> Iterator[str]:
        """Send the files that are missing in the store or, as `wrong` says, have another content, from a copy that has
        the right one; yields their names."""
        for relative, row in about.items():
            path, mine = blob_of(row), directory / relative
            if (path in wrong or self.remote.size(path) != row["bytes"]) and is_whole(mine, row):
                self.check_mine()
                self.remote.put(path, mine)
                yield relative

    def put_text(self, text: str) -> None:
        """Send the content of a small file, such as replay samples."""
        self.check_mine()
        raw = text.encode()
        self.remote.put(blob_of({"sha256": hashlib.sha256(raw).hexdigest()}), raw)

    def create(self, name: str, number: int, text: str) -> bool:
        """Put a version's manifest unless there is one; whether this one is there now."""
        self.check_mine()
        return self.remote.put_new(manifest_at(name, number), text.encode())

    def remove_file(self, path: str) -> None:
        """Delete what `unneeded` found."""
        self.check_mine()
        self.remote.remove(path)

    def drop_manifest(self, name: str, number: int) -> None:
        self.check_mine()
        self.remote.remove(manifest_at(name, number))

    def follow(self, name: str, number: int, text: str, needed: set[str]) -> None:
        """Replace a version's manifest by what the index says, and delete the files that only the old one named.

        Args:
            needed: the SHA-256 of every file that a version in the index has.
        """
        self.check_mine()
        self._drop_files(name, number, needed)  # first: the old manifest knows their names
        self.remote.put(manifest_at(name, number), text.encode())

    def drop(self, name: str, number: int, needed: set[str]) -> None:
        """Delete a version, and its files that no other version has."""
        self.check_mine()
        self._drop_files(name, number, needed)
        self.drop_manifest(name, number)

    def _drop_files(self, name: str, number: int, needed: set[str]) -> None:
        with suppress(IntegrityError):
            for row in self.parsed(name, number)[0]["files"].values():
                if row["sha256"] not in needed:
                    self.remote.remove(blob_of(row))

    def unneeded(self, needed: set[str]) -> dict[str, int]:
        """The files that no version has: path in the store → size in bytes. A version that has no rows yet counts."""
        kept = {blob_of({"sha256": sha}) for sha in needed}
        there = self.remote.sizes(BLOBS)
        if there.keys() <= kept:
            return {}
        for text in self.texts(self.versions()).values():
            with suppress(IntegrityError, KeyError):
                kept.update(blob_of(row) for row in _files_of(text))
        return {path: size for path, size in there.items() if path not in kept}

    def all_files(self) -> Iterator[tuple[str, AbstractContextManager[BinaryIO]]]:
        """Every file of the store: its name for messages, and a block that opens it."""
        for path in sorted({**self.remote.sizes(BLOBS), **self.remote.sizes(MANIFESTS)}):
            yield f"{self.remote.url}/{path}", self._opened(path)

    @contextmanager
    def _opened(self, path: str) -> Iterator[BinaryIO]:
        with self.remote.errors(), self.remote.opened(path) as file:
            yield cast(BinaryIO, file)

    # -- copies on this machine ------------------------------------------------------------------

    def is_current(self, name: str, number: int, text: str) -> bool:
        """Whether this machine has a copy of the version as the index describes it."""
        try:
            return (self._copy(name, number) / manifests.FILE_NAME).read_bytes() == text.encode()
        except OSError:
            return False

    def _copy(self, name: str, number: int) -> Path:
        return self.folder / name / f"v{number}"

    def fetch(self, name: str, number: int, text: str) -> Path:
        """The directory of a version on this machine, fetched and checked first if it is not there.

        Args:
            text: the manifest in the index, when the version was read. Its samples may have been removed since.

        Raises:
            IntegrityError: the store lacks a file, or it has another content.
            StorageError: the store cannot be reached, or the disk cannot be written; nothing half done is left.
        """
        if self.is_current(name, number, text):
            return self._copy(name, number)
        for _ in range(_TRIES):
            text = self.now(name, number) or text
            try:
                return self._fetch(name, number, text)
            except IntegrityError:
                if self.now(name, number) in (None, text):
                    raise
        return self._fetch(name, number, self.now(name, number) or text)

    def _fetch(self, name: str, number: int, text: str) -> Path:
        final = self._copy(name, number)
        if self.is_current(name, number, text):
            return final
        beside = final.parent / files.temporary_name()
        try:
            with files.storage_errors(final):
                beside.mkdir(parents=True)
                for relative, row in manifests.parse(text, final / manifests.FILE_NAME)["files"].items():
                    self._fetch_file(final / relative, beside / relative, row, f"{relative} of {name}@v{number}")
                files.write_synced(beside / manifests.FILE_NAME, text.encode())
                (beside / manifests.FILE_NAME).chmod(0o444)
                files.fsync_dir(beside)
                if not self.is_current(name, number, text):  # another process may have been faster
                    self._put_in_place(beside, final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return final

    def _put_in_place(self, made: Path, final: Path) -> None:
        if final.is_symlink() or final.exists():
            away = final.parent / files.temporary_name()
            with suppress(FileNotFoundError):  # another process has replaced it too
                final.rename(away)
            shutil.rmtree(away, ignore_errors=True)
        try:
            made.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # otherwise another process was faster, with the same files

    def _fetch_file(self, old: Path, target: Path, row: Mapping[str, Any], what: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_whole(old, row):
            shutil.copyfile(old, target)
        else:
            hint = "restore it in the store, or see cl-adapter verify"
            if self.remote.size(blob_of(row)) is None:
                raise IntegrityError(f"{what} is missing in {self.remote.url}", hint)
            digest = hashlib.sha256()
            with self.remote.errors(), self.remote.opened(blob_of(row)) as source, target.open("wb") as made:
                while piece := source.read(1 << 20):
                    digest.update(piece)
                    with files.storage_errors(target):
                        made.write(piece)
            if digest.hexdigest() != row["sha256"]:
                raise IntegrityError(f"{what} was changed or cut short in {self.remote.url}", hint)
        files.fsync_file(target)
        target.chmod(0o444)

    def adopt(self, draft: Path, name: str, number: int, text: str) -> bool:
        """Make a draft that was published this machine's copy; False where the disk does not allow it."""
        with suppress(OSError):
            files.write_synced(draft / manifests.FILE_NAME, text.encode())
            (draft / manifests.FILE_NAME).chmod(0o444)
            self._put_in_place(draft, self._copy(name, number))
            return True
        return False


def is_whole(path: Path, row: Mapping[str, Any]) -> bool:
    """Whether a file on this machine is there, and has the recorded content."""
    return path.is_file() and not path.is_symlink() and files.sha256_file(path) == row["sha256"]


def needed_files(texts: Iterable[str]) -> set[str]:
    """The SHA-256 of all files that these manifests name."""
    return {str(row["sha256"]) for text in texts for row in _files_of(text)}


def _files_of(text: str) -> Iterator[Mapping[str, Any]]:
    with suppress(ValueError, AdapterHubError, AttributeError):
        yield from json.loads(text).get("files", {}).values()


def blob_of(row: Mapping[str, Any]) -> str:
    sha = str(row["sha256"])
    if re.fullmatch(r"[0-9a-f]{64}", sha) is None:
        raise IntegrityError(f"{sha[:80]!r} is not a SHA-256", "see cl-adapter verify")
    return f"{BLOBS}/{sha[:2]}/{sha}"


def manifest_at(name: str, number: int) -> str:
    """The path of a version's manifest in the store."""
    return f"{MANIFESTS}/{name}/v{number}.json"
