"""What was measured on this machine, kept in the user's cache; losing it costs seconds, so failures are harmless."""

from __future__ import annotations

import json
import platform
from typing import Any

from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry.files import atomic_write_text


class Measured:
    """The choices that were measured here, by a key that names machine, base and whatever else decides."""

    def __init__(self) -> None:
        from platformdirs import user_cache_path

        self.path = user_cache_path("adapterhub-cl") / "speed.json"

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def get(self, key: str) -> str | None:
        """What was put under the key; None if nothing was, or something odd."""
        value = self._read().get(key)
        return value if isinstance(value, str) else None

    def put(self, key: str, value: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.path, json.dumps({**self._read(), key: value}, indent=1))
        except (OSError, StorageError):
            return


def processor() -> str:
    """The processor's model as far as it is known, with its number of threads in use."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    tiles = torch.cpu._is_amx_tile_supported()  # virtual machines call unlike processors by one name
    return f"{name}{' with AMX' if tiles else ''}, {torch.get_num_threads()} threads"
