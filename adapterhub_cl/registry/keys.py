"""The key of a hub's tombstones. It is not stored in the hub, so a copy of the hub alone is not enough to search for
removed texts.

Each hub has one key, in the user's configuration directory, created when the hub first forgets a task; `--key FILE`, or
the variable `CL_ADAPTER_FORGET_KEY`, names another place. It is on disk before the first tombstone that needs it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.registry import files
from adapterhub_cl.registry.hubfile import HubFile
from adapterhub_cl.registry.names import check_local

VARIABLE = "CL_ADAPTER_FORGET_KEY"
_BYTES = 32


@dataclass(frozen=True)
class Key:
    secret: bytes
    path: Path

    @property
    def id(self) -> str:
        """An identifier that a tombstone stores, to recognise its key."""
        return hmac.digest(self.secret, b"the name of this key", "sha256").hex()[:16]


def default_path(hub: Path) -> Path:
    """Where the key of a hub is unless the user names another file; the same for a copy of the hub."""
    from platformdirs import user_config_path

    about = HubFile.read(hub)
    name = hashlib.sha256(f"{about.created_at}|{about.base.fingerprint}".encode()).hexdigest()[:16]
    return user_config_path("adapterhub-cl") / "forget-keys" / f"{name}.key"


def named(given: Path | None) -> Path | None:
    """The key file that the user named, by flag or by environment variable."""
    said = os.environ.get(VARIABLE)
    return given if given is not None else check_local(said, "a file") if said else None


def get_or_make(hub: Path, given: Path | None) -> Key:
    """The key for a new tombstone; created if there is none. It is on disk when this returns.

    Raises:
            UsageError: the file holds something else, or is inside the hub.
        StorageError: the disk cannot be written.
    """
    path = named(given) or default_path(hub)
    if path.resolve().is_relative_to(hub.resolve()):
        raise UsageError(
            f"the key {path} would be inside the hub, where it protects nothing", "name a file elsewhere: --key FILE"
        )
    if not path.exists():
        _make(path)
    return _read(path)


def find(hub: Path, wanted: str, given: Path | None) -> Key | None:
    """The key that a tombstone was made with; None if it is not on this machine.

    Raises:
        AdapterError: the file that the user named holds another key.
        UsageError: that file is missing, or holds no key.
    """
    said = named(given)
    if said is not None:
        if not said.exists():
            raise UsageError(f"there is no key file {said}", "name the file that forget-task reported")
        key = _read(said)
        if key.id != wanted:
            raise AdapterError(
                f"{said} is the key of other tombstones ({key.id}, not {wanted})", "name another: --key FILE"
            )
        return key
    return usual(hub, wanted)


def usual(hub: Path, wanted: str) -> Key | None:
    """The key that a tombstone was made with, from the user's configuration directory; None if it is not there."""
    return next((key for key in _here(hub) if key.id == wanted), None)


def _here(hub: Path) -> Iterator[Key]:
    first = default_path(hub)
    for path in dict.fromkeys([first, *sorted(first.parent.glob("*.key"))]):
        with suppress(OSError, UsageError):
            yield _read(path)


def _read(path: Path) -> Key:
    hint = "name the file that forget-task reported: --key FILE"
    try:
        text = path.read_text(encoding="ascii").strip()
        secret = bytes.fromhex(text)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {(error.strerror or 'unknown').lower()}", hint) from error
    except ValueError as error:
        raise UsageError(f"{path} is not a key file", hint) from error
    if len(secret) != _BYTES:
        raise UsageError(f"{path} is not a key file", hint)
    return Key(secret, path)


def _make(path: Path) -> None:
    """Write a new key atomically, readable by its owner only; if another process was faster, its key is used."""
    temporary = path.with_name(files.temporary_name())
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                files.write_all(descriptor, secrets.token_bytes(_BYTES).hex().encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            with suppress(FileExistsError):
                path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        files.fsync_dir(path.parent)
