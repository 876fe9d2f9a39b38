"""The folders from which a vLLM loads a hub's versions: one for each content, inside the hub."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from adapterhub_cl.adapters.lora_config import CONFIG, WEIGHTS
from adapterhub_cl.adapters.outside import filled
from adapterhub_cl.adapters.vllm_folder import EXPORTS, Outline, write_vllm_folder, write_zeros
from adapterhub_cl.bases.sources import public_name
from adapterhub_cl.errors import UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.files import storage_errors
from adapterhub_cl.types import AdapterRecord

FORMAT = 1  # of the folders' content


class VllmExports:
    """Makes the folders, and removes those of versions that are gone.

    Attributes:
        known: reference → the name that the vLLM has for a version, and its folder. The name has the hash of what the
            version contains, so a name never stands for other weights, whichever hub loads them.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry, self._room = registry, registry.path.resolve() / EXPORTS
        self.known: dict[str, tuple[str, Path]] = {}

    def folder(self, record: AdapterRecord) -> tuple[str, Path]:
        """vLLM's name of a version, and its folder, which is written if it is not there yet.

        Raises:
            AdapterError: vLLM cannot serve it.
            IntegrityError: its files are damaged.
            StorageError: the hub cannot be written.
        """
        content = content_of(record)
        name = f"{record.ref}-{content[:12]}"
        folder = self._room / content[:16] / name
        if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
            self._registry.check_files(record)
            with storage_errors(folder):
                folder.parent.mkdir(parents=True, exist_ok=True)
            base_name = public_name(str(record.manifest.get("base", {}).get("source", "")))
            try:
                with filled(folder) as made:
                    write_vllm_folder(record.path, made, base_name)
            except UsageError:  # another server of this hub wrote it meanwhile
                if not (folder / WEIGHTS).is_file():
                    raise
        self.known[record.ref] = (name, folder)
        return name, folder

    def rank(self, folder: Path) -> int:
        """The rank that a folder has in vLLM."""
        return int(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["r"])

    def zeros(self, like: Outline) -> Path:
        """A folder for vLLM with factors of zero."""
        target = self._room / "zeros" / sha256(repr(like).encode()).hexdigest()[:16]
        if not (target / WEIGHTS).is_file():
            with storage_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            with filled(target) as made:
                write_zeros(like, made)
        return target

    def drop(self, ref: str) -> None:
        """Remove the folder of a version that is no longer in the hub."""
        found = self.known.pop(ref, None)
        if found is not None:
            shutil.rmtree(found[1], ignore_errors=True)
            with suppress(OSError):  # a version of the same content may lie there too
                found[1].parent.rmdir()
                self._room.rmdir()


def content_of(record: AdapterRecord) -> str:
    """SHA-256 over what a version computes: its config and its tensors."""
    files = record.manifest.get("files") or {}
    hashes = {name: about.get("sha256", "") for name, about in files.items() if name.startswith("adapter_")}
    return sha256(json.dumps([FORMAT, hashes], sort_keys=True).encode()).hexdigest()
