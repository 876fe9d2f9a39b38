"""Writes a version for the outside."""

from __future__ import annotations

import shutil
from pathlib import Path

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.types import AdapterRecord

FORMATS = ("peft",)
_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "heads.json",
    "README.md",
    "training.json",
    "recipe.json",
)
_PACKED = "adapter_model.packed.safetensors"


def export(record: AdapterRecord, target: Path, format: str) -> Path:  # noqa: A002 (the flag's name)
    """Copy a version in PEFT's own format to a missing or empty directory; a packed one is unpacked.

    Raises:
        UnknownNameError: no such format.
        UsageError: there is something in the directory.
        StorageError: the disk refused; a half copy is removed.
    """
    if format not in FORMATS:
        raise UnknownNameError("export format", format, FORMATS)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is not an empty directory", "name a missing or empty one with -o")
    made = not target.exists()
    with storage_errors(target):
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                if (record.path / name).is_file():  # an imported adapter has no training.json
                    shutil.copyfile(record.path / name, target / name)
            if (record.path / _PACKED).is_file():
                from adapterhub_cl.lora_files import unpack  # the only export that needs torch

                unpack(record.path, target)
        except BaseException:
            for name in _FILES:
                (target / name).unlink(missing_ok=True)
            if made:
                shutil.rmtree(target, ignore_errors=True)
            raise
    return target
