"""The fingerprint of a base: SHA-256 over its weights, configuration, tokenizer and chat template."""

from __future__ import annotations

import hashlib
from pathlib import Path

from adapterhub_cl.bases.sources import model_files
from adapterhub_cl.bases.this_machine import UserCache


def fingerprint(path: Path) -> str:
    """SHA-256 (hexadecimal) over the names and contents of all files that define the model.

    Hashes of single files are cached by path, size and modification time, so that a second call takes a few
    milliseconds. `generation_config.json` is left out: it changes neither weights nor tokens.
    """
    cache = UserCache("fingerprints.json")
    whole = hashlib.sha256()
    for file in model_files(path):
        if file.name != "generation_config.json":
            whole.update(f"{file.name}\0{_sha256(file, cache)}\n".encode())
    return whole.hexdigest()


def _sha256(file: Path, cache: UserCache) -> str:
    """Of a file's content; a file of known path, size and time is not read again."""
    stat = file.stat()
    key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    known = cache.get(key)
    if known is None:
        with open(file, "rb") as stream:
            known = hashlib.file_digest(stream, "sha256").hexdigest()
        cache.put(key, known)
    return known
