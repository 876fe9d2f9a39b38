"""The fingerprint of a base: SHA-256 over its weights, configuration, tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from adapterhub_cl.bases.sources import model_files
from adapterhub_cl.bases.this_machine import UserCache
from adapterhub_cl.registry.files import sha256_file
from adapterhub_cl.types import BaseInfo

GGUF = "gguf.json"  # in a kept folder: the GGUF file that it was made of


def fingerprint(path: Path, *, again: bool = False) -> str:
    """SHA-256 (hexadecimal) over the names and contents of all files that define the model.

    Hashes of single files are cached by path, size and modification time, so that a second call takes a few
    milliseconds. `generation_config.json` is left out: it changes neither weights nor tokens. A base that is a GGUF
    file has the hash of that file.

    Args:
        again: read every file, whatever the cache says of it.
    """
    if of_file := _of_gguf(path):
        return of_file
    cache = UserCache("fingerprints.json")
    whole = hashlib.sha256()
    for file in model_files(path):
        if file.name != "generation_config.json":
            whole.update(f"{file.name}\0{file_sha256(file, cache, again=again)}\n".encode())
    return whole.hexdigest()


def changed_to(path: Path, wanted: str) -> str:
    """The fingerprint of a base that is not the wanted one; empty where it is. Nothing is said to have changed because
    of the cache alone, which may be spoilt."""
    if fingerprint(path) == wanted:
        return ""
    now = fingerprint(path, again=True)
    return "" if now == wanted else now


def is_base(root: str, base: BaseInfo) -> bool:
    """Whether an id or a folder of this machine is a hub's base: the id by its name, the folder by its fingerprint."""
    if root == base.source:
        return True
    folder = Path(root).expanduser()
    return folder.is_dir() and not changed_to(folder, base.fingerprint)


def kept_room() -> Path:
    """Where copies of bases in another form are kept; see `kept_weights`."""
    from platformdirs import user_cache_path

    return user_cache_path("adapterhub-cl") / "bases"


def _of_gguf(path: Path) -> str:
    """The SHA-256 of the GGUF file that a kept folder was made of; empty for any other folder."""
    if path.parent != kept_room():
        return ""
    try:
        return str(json.loads((path / GGUF).read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def file_sha256(file: Path, cache: UserCache, *, again: bool = False) -> str:
    """SHA-256 (hexadecimal) of a file's content; a file of known path, size and time is only read `again`."""
    known = None if again else cache.get(_key(file))
    if known is None:
        known = sha256_file(file)
        remember_sha256(file, known, cache)
    return known


def remember_sha256(file: Path, digest: str, cache: UserCache) -> None:
    """Tell the cache what is known of a file that nothing has changed since."""
    cache.put(_key(file), digest)


def _key(file: Path) -> str:
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
