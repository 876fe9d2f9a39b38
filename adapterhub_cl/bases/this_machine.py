"""This machine: what it is, and what was found out on it and is kept in the user's cache."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from pathlib import Path

from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry.files import atomic_write_text

IDENTITY = "_adapterhub_identity"  # attribute of a model: by what the cache knows it; absent where nothing is kept


class UserCache:
    """Texts by key in a file of the user's cache. It can be lost at any time, so every failure is harmless.

    Args:
        file: its name there.
    """

    def __init__(self, file: str) -> None:
        from platformdirs import user_cache_path

        self.path = user_cache_path("adapterhub-cl") / file
        self._known = self._read()

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def get(self, key: str) -> str | None:
        """What was put under the key; None if nothing was, or something odd."""
        value = self._known.get(key)
        return value if isinstance(value, str) else None

    def put(self, key: str, value: str) -> None:
        self._known = {**self._read(), key: value}  # with what other processes put there meanwhile
        with suppress(OSError, StorageError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.path, json.dumps(self._known, indent=1))


def processor_name() -> str:
    """The processor's name (Linux), else its kind."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def processor() -> str:
    """What decides how fast this processor computes: its name, AMX and the number of threads in use."""
    import torch

    tiles = torch.cpu._is_amx_tile_supported()  # virtual machines call unlike processors by one name
    return f"{processor_name()}{' with AMX' if tiles else ''}, {torch.get_num_threads()} threads"
