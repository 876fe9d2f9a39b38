"""Bases in another form, kept in the user's cache: quantised weights, and what GGUF files contain.

A copy is what `save_pretrained` writes, beside the SHA-256 of each file. It can be lost at any time, and if anything is
wrong with it, it is made again from the base.
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

from adapterhub_cl.bases.fingerprint import file_sha256, kept_room, remember_sha256
from adapterhub_cl.bases.this_machine import UserCache
from adapterhub_cl.errors import first_line, is_out_of_memory
from adapterhub_cl.quiet import no_loading_bars
from adapterhub_cl.registry.files import sha256_file

LEAST_PARAMETERS = 50_000_000  # smaller bases are quantised in a moment
UNUSED_DAYS = 60  # then a copy is removed
ROOM = 3  # times the size of a copy that must be free in the cache, so that it never fills a disk
MANIFEST = "kept.json"
CONFIG = "config.json"


class KeptWeights:
    """The copy of one base in one form.

    Args:
        identity: whatever decides the values: fingerprint, quantisation, type, device, versions.

    Attributes:
        note: what the user should know about the copy; empty if all is well.
    """

    def __init__(self, identity: str) -> None:
        self.room = kept_room()
        self.folder = self.room / hashlib.sha256(identity.encode()).hexdigest()[:32]
        self.note = ""

    def load(self, read: Callable[[Path], Any]) -> Any:
        """What `read` makes of the copy; None if there is no copy, or one that is spoilt, which is removed.

        Args:
            read: gets the folder.
        """
        if self.folder.is_symlink():
            self.note = f"{self.folder} was a link, which nothing here makes; the link was removed"
            with suppress(OSError):
                self.folder.unlink()
            return None
        if not self.folder.is_dir():
            return None
        try:
            self._check()
            found = read(self.folder)
        except Exception as error:  # transformers, safetensors and bitsandbytes raise whatever they like
            if is_out_of_memory(error):  # nothing is wrong with the copy
                raise
            reason = first_line(error)
            self.note = f"the weights kept in {self.folder} cannot be used ({reason}); they were made again"
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

    def store(self, save: Callable[[Path], object], size: int) -> None:
        """Keep what `save` writes, if there is room for it; another process may be doing the same.

        Args:
            save: gets a folder to write to, which it may have to make.
            size: of the weights, in bytes.
        """
        self._forget_unused()
        unfinished = self.room / f".{self.folder.name}.{secrets.token_hex(4)}.tmp"
        try:
            self.room.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.room).free
            if free < ROOM * size:
                self.note = (
                    f"nothing is kept for the next start: {self.room} has {free / 1e9:.1f} GB free, "
                    f"and {ROOM * size / 1e9:.1f} GB are wanted"
                )
                return
            with no_loading_bars():
                save(unfinished)
            files = {path.name: sha256_file(path) for path in sorted(unfinished.iterdir())}
            (unfinished / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
            unfinished.rename(self.folder)
            cache = UserCache("fingerprints.json")
            for name, digest in files.items():
                remember_sha256(self.folder / name, digest, cache)
        except Exception as error:  # a full disk, or a model that transformers cannot save
            if not self.folder.is_dir():  # else another process was faster
                self.note = f"nothing is kept for the next start: {error}"
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _forget_unused(self) -> None:
        """Remove what was not used for long, and what a killed process left."""
        with suppress(OSError):
            for folder in self.room.iterdir():
                age = time.time() - folder.stat().st_mtime
                if age > UNUSED_DAYS * 86400 or (folder.name.startswith(".") and age > 86400):
                    shutil.rmtree(folder, ignore_errors=True)
