"""The fingerprint of a base: SHA-256 over its weights, configuration, tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from adapterhub_cl.bases.sources import model_files


def fingerprint(path: Path) -> str:
    """SHA-256 (hexadecimal) over the names and contents of all files that define the model.

    Hashes of single files are cached by path, size and modification time, so that a second call takes a few
    milliseconds. `generation_config.json` is left out: it changes neither weights nor tokens.
    """
    cache = _Cache()
    whole = hashlib.sha256()
    for file in model_files(path):
        if file.name != "generation_config.json":
            whole.update(f"{file.name}\0{cache.sha256(file)}\n".encode())
    cache.save()
    return whole.hexdigest()


class _Cache:
    """Hashes by (path, size, mtime). Losing it only costs time, so failures to read or write it are ignored."""

    def __init__(self) -> None:
        from platformdirs import user_cache_path

        self.path = user_cache_path("adapterhub-cl") / "fingerprints.json"
        self.changed = False
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        self.known: dict[str, str] = known if isinstance(known, dict) else {}

    def sha256(self, file: Path) -> str:
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self.known:
            with open(file, "rb") as stream:
                self.known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            self.changed = True
        return self.known[key]

    def save(self) -> None:
        if not self.changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(self.known, stream)
            Path(temporary).replace(self.path)
        except OSError:
            return
