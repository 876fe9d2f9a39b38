"""The key that signs what a user pushes (Ed25519), and the signers that a hub has accepted for each store."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub_cl.errors import HubError, UsageError
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.registry.files import atomic_write_text, fsync_dir, temporary_name, write_all
from adapterhub_cl.types import Problem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PINNED = "signers.json"  # in the hub
_FORMAT = 1
_PREFIX = "ed25519:"
_INSTALL = "pip install 'adapterhub-cl[share]'"


def fingerprint(public: bytes) -> str:
    """A public key as people compare it: `ed25519:` and 128 bits of its SHA-256."""
    return _PREFIX + hashlib.sha256(public).hexdigest()[:32]


@dataclass(frozen=True)
class SigningKey:
    """A user's key.

    Attributes:
        public: its 32 public bytes.
        made: whether it was made by this call.
    """

    private: Ed25519PrivateKey
    public: bytes
    path: Path
    made: bool = False

    def sign(self, text: bytes) -> bytes:
        return self.private.sign(text)


def signing_key() -> SigningKey:
    """This user's key, in the user's configuration folder; made at the first call, readable by nobody else.

    Raises:
        UsageError: the file holds something else, others can read it, or the package `cryptography` is missing.
        StorageError: it cannot be written.
    """
    from platformdirs import user_config_path

    path = user_config_path("adapterhub-cl") / "signing.key"
    made = not path.exists()
    if made:
        _make(path)
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise _missing() from error
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UsageError(f"others can read the signing key {path}", f"chmod 600 {path}")
    with storage_errors(path):
        raw = path.read_bytes()
    try:
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw.decode().strip()))
    except ValueError as error:
        raise UsageError(f"{path} is not a signing key", "move it away, and the next push makes a new one") from error
    return SigningKey(private, private.public_key().public_bytes_raw(), path, made)


def _make(path: Path) -> None:
    """Write a new key beside its place and link it there, so that of two processes one wins and none reads half."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise _missing() from error
    text = Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n"
    beside = path.with_name(temporary_name())
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                write_all(descriptor, text.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            with suppress(FileExistsError):
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        fsync_dir(path.parent)


def is_signed(public: bytes, signature: bytes, text: bytes) -> bool:
    """Whether the signature of a text is that of the public key.

    Raises:
        UsageError: the package `cryptography` is missing.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise _missing() from error
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def _missing() -> UsageError:
    return UsageError("sharing needs the package cryptography", _INSTALL)


# -- the signers that a hub has accepted -------------------------------------------------------------------------


def pinned(hub: Path, url: str) -> frozenset[str]:
    """The fingerprints that a hub has accepted for a store; empty before the first pull from there.

    Raises:
        HubError: the file cannot be read.
    """
    return frozenset(_read(hub).get(url, ()))


def damaged_signers(hub: Path) -> list[Problem]:
    """What is wrong with the file, for `verify`: without it no version is pulled."""
    try:
        _read(hub)
    except HubError as error:
        return [Problem(PINNED, error.message.replace(str(hub / PINNED), "the file", 1), error.hint)]
    return []


def pin(hub: Path, url: str, accepted: Collection[str]) -> None:
    """Accept more signers for a store.

    Raises:
        StorageError: the disk cannot be written; the old file is untouched.
    """
    known = _read(hub)
    wanted = sorted({*known.get(url, ()), *accepted})
    if known.get(url) != wanted:
        text = json.dumps({"format": _FORMAT, "stores": {**known, url: wanted}}, indent=1, ensure_ascii=False)
        atomic_write_text(hub / PINNED, text + "\n")


def _read(hub: Path) -> dict[str, list[str]]:
    path = hub / PINNED
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != _FORMAT:
            raise ValueError(f"format {told['format']}")
        return {str(url): [str(one) for one in signers] for url, signers in told["stores"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{path} cannot be read: it lists the signers that this hub accepts",
            "restore it from a copy of the hub, or remove it to accept signers anew",
        ) from error


def as_fingerprint(text: str) -> str:
    """What a user gave to `--trust`, as `fingerprint` writes it.

    Raises:
        UsageError: it is no fingerprint.
    """
    digits = text.strip().lower().removeprefix(_PREFIX)
    if len(digits) != 32 or any(c not in "0123456789abcdef" for c in digits):
        raise UsageError(
            f"{text[:80]!r} is not a signer's fingerprint", f"write it as push shows it: {_PREFIX} and 32 digits"
        )
    return _PREFIX + digits
