"""The signed document of a version in a store: its manifest, what its parents were, and who signed that."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.registry import shapes
from adapterhub_cl.registry.manifests import parse
from adapterhub_cl.registry.publishing import TOLD
from adapterhub_cl.registry.samples import FILE_NAME as SAMPLES
from adapterhub_cl.sharing.signing import SigningKey, fingerprint, is_signed
from adapterhub_cl.types import Task

FORMAT = 1
_PURPOSE = b"adapterhub-cl shared version\n"  # so that a signature holds for nothing else
_DIGITS = set("0123456789abcdef")


@dataclass(frozen=True)
class MovedVersion:
    """One version of a push or a pull.

    Attributes:
        ref: the version; of a pull its reference in this hub.
        moved: whether it was moved; otherwise it was already there.
        bytes: what was sent or fetched for it.
    """

    ref: str
    moved: bool
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"ref": self.ref, "moved": self.moved, "bytes": self.bytes}


@dataclass(frozen=True)
class SharedVersion:
    """A version as a store describes it, with a valid signature.

    Attributes:
        manifest: checked as a hub's own manifests are; of its files only those that the store has.
        serves: whether it answered for its task where it came from, or was made to.
        parents: parent in the lineage → the digest of its content, where it was known.
        signer: the fingerprint of the key that signed.
    """

    name: str
    number: int
    manifest: Mapping[str, Any]
    serves: bool
    parents: Mapping[str, str]
    signer: str

    @property
    def ref(self) -> str:
        return f"{self.name}@v{self.number}"

    @property
    def files(self) -> dict[str, Mapping[str, Any]]:
        return dict(self.manifest["files"])

    @property
    def task(self) -> Task | None:
        spec = self.manifest["task_spec"]
        return Task.from_json(spec) if spec else None


def digest(manifest: Mapping[str, Any]) -> str:
    """What makes two versions the same: the SHA-256 of their files, without samples, cards and recipes."""
    rows = sorted((name, row["sha256"]) for name, row in manifest["files"].items() if name not in (*TOLD, SAMPLES))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def without_samples(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest that neither lists nor counts replay samples."""
    files = {name: row for name, row in manifest["files"].items() if name != SAMPLES}
    kept = {**manifest, "files": files, "bytes": sum(int(row["bytes"]) for row in files.values())}
    if isinstance(manifest.get("replay"), Mapping):
        kept["replay"] = {**manifest["replay"], "samples": 0}
    return kept


def write(manifest: Mapping[str, Any], parents: Mapping[str, str], serves: bool, key: SigningKey) -> bytes:
    """The document of a version."""
    about = {"format": FORMAT, "manifest": manifest, "parents": dict(parents), "serves": serves}
    text = json.dumps(about, ensure_ascii=False, allow_nan=False, sort_keys=True)
    signed = {
        "signed": text,  # as text, so that the signature needs no rule for writing JSON
        "signer": base64.b64encode(key.public).decode(),
        "signature": base64.b64encode(key.sign(_PURPOSE + text.encode())).decode(),
    }
    return (json.dumps(signed, ensure_ascii=False) + "\n").encode()


def read(raw: bytes, name: str, number: int, where: str) -> SharedVersion:
    """Read and check a document that stands in the store as that of `name@vN`.

    Args:
        where: the store, for messages.

    Raises:
        IntegrityError: it is damaged, its signature is wrong, it describes another version, or a newer release of
            this project wrote it.
    """
    place = f"{name}@v{number} in {where}"
    try:
        outer = shapes.parse(raw.decode())
        text, public, signature = outer["signed"], _bytes(outer["signer"]), _bytes(outer["signature"])
        signed = text.encode()
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise IntegrityError(f"the document of {place} is damaged", _again(name, number)) from error
    if not is_signed(public, signature, _PURPOSE + signed):
        raise IntegrityError(f"the signature of {place} is wrong: the document was changed", _again(name, number))
    try:
        about = shapes.parse(text)
        if about["format"] != FORMAT:
            raise IntegrityError(
                f"{place} has format {shapes.shown(about['format'])}, which this version does not know",
                "update adapterhub-cl",
            )
        manifest = parse(json.dumps(about["manifest"]), Path(where) / name / f"v{number}" / "its document")
        parents, serves = about["parents"], about["serves"]
        if not isinstance(serves, bool) or not all(map(_is_digest, parents.values())):
            raise ValueError("its parents")
        _check_finite(about["manifest"])
        if not all(_is_digest(row["sha256"]) for row in manifest["files"].values()):
            raise ValueError("a hash")
        shared = SharedVersion(name, number, manifest, serves, dict(parents), fingerprint(public))
        _ = shared.task
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"the document of {place} describes no version", _again(name, number)) from error
    return shared


def _again(name: str, number: int) -> str:
    return f"remove versions/{name}/v{number}.json there, and push the version again from a hub that has it"


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _check_finite(value: Any) -> None:
    """Raise ValueError for NaN and infinities, which JSON does not have and Python's reader accepts."""
    json.dumps(value, allow_nan=False)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= _DIGITS
