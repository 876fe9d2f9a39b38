"""Quantised weights, kept in the user's cache: quantising is most of what loading a base takes.

A copy is what `save_pretrained` writes of the quantised base, beside the SHA-256 of each file. It can be lost at any
time; whatever is wrong with it, the base is quantised again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapterhub_cl.bases.fingerprint import file_sha256, remember_sha256
from adapterhub_cl.bases.this_machine import UserCache
from adapterhub_cl.quiet import no_loading_bars
from adapterhub_cl.registry.files import sha256_file

LEAST_PARAMETERS = 50_000_000  # smaller bases are quantised in a moment
UNUSED_DAYS = 60  # then a copy is removed
ROOM = 3  # times the size of a copy that must be free in the cache, so that it never fills a disk
MANIFEST = "kept.json"
CONFIG = "config.json"


class KeptWeights:
    """The copy of one base, quantised one way.

    Args:
        identity: whatever decides the quantised values: fingerprint, quantisation, type, device, versions.

    Attributes:
        note: what the user should know about the copy; empty if all is well.
    """

    def __init__(self, identity: str) -> None:
        from platformdirs import user_cache_path

        self.room = user_cache_path("adapterhub-cl") / "bases"
        self.folder = self.room / hashlib.sha256(identity.encode()).hexdigest()[:32]
        self.note = ""

    def load(self, read: Callable[[Path], Any]) -> Any:
        """What `read` makes of the copy; None if there is no copy, or one that is spoilt, which is removed.

        Args:
            read: gets the folder.
        """
        if not self.folder.is_dir():
            return None
        try:
            self._check()
            found = read(self.folder)
        except Exception as error:  # transformers, safetensors and bitsandbytes raise whatever they like
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.note = f"the weights kept in {self.folder} cannot be used ({reason}); the base was quantised again"
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        with suppress(OSError):
            os.utime(self.folder)  # it was used today
        return found

    def _check(self) -> None:
        files = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        if CONFIG not in files or not any(name.endswith(".safetensors") for name in files):
            raise ValueError("its list of files is incomplete")
        cache = UserCache("fingerprints.json")
        there = {path.name for path in self.folder.iterdir()} - {MANIFEST}
        if there != files.keys():
            raise ValueError(f"it has files that it should not have, or lacks some: {sorted(there ^ files.keys())}")
        for name, wanted in files.items():
            if file_sha256(self.folder / name, cache) != wanted:
                raise ValueError(f"{name} has changed")

    def store(self, model: Any, size: int) -> None:
        """Keep a quantised model, if there is room for it; another process may be doing the same.

        Args:
            size: of the weights, in bytes.
        """
        self._forget_unused()
        unfinished = self.room / f".{self.folder.name}.{secrets.token_hex(4)}.tmp"
        try:
            self.room.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.room).free
            if free < ROOM * size:
                self.note = (
                    f"the quantised weights are not kept for the next start: {self.room} has {free / 1e9:.1f} GB free, "
                    f"and {ROOM * size / 1e9:.1f} GB are wanted"
                )
                return
            with no_loading_bars():
                model.save_pretrained(unfinished)
            (unfinished / "generation_config.json").unlink(missing_ok=True)  # read from the base itself
            files = {path.name: sha256_file(path) for path in sorted(unfinished.iterdir())}
            (unfinished / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
            unfinished.rename(self.folder)
            cache = UserCache("fingerprints.json")
            for name, digest in files.items():
                remember_sha256(self.folder / name, digest, cache)
        except Exception as error:  # a full disk, or a model that transformers cannot save
            if not self.folder.is_dir():  # else another process was faster
                self.note = f"the quantised weights are not kept for the next start: {error}"
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _forget_unused(self) -> None:
        """Remove what was not used for long, and what a killed process left."""
        with suppress(OSError):
            for folder in self.room.iterdir():
                age = time.time() - folder.stat().st_mtime
                if age > UNUSED_DAYS * 86400 or (folder.name.startswith(".") and age > 86400):
                    shutil.rmtree(folder, ignore_errors=True)
