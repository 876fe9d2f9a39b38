"""Writes a version for the outside."""

from __future__ import annotations

import shutil
from pathlib import Path

from adapterhub_cl.errors import UnknownNameError
from adapterhub_cl.registry.outside import filled
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
        StorageError: the disk refused; the directory is as it was.
    """
    if format not in FORMATS:
        raise UnknownNameError("export format", format, FORMATS)
    with filled(target) as folder:
        for name in _FILES:
            if (record.path / name).is_file():  # an imported adapter has no training.json
                shutil.copyfile(record.path / name, folder / name)
        if (record.path / _PACKED).is_file():
            from adapterhub_cl.lora_files import unpack  # the only export that needs torch

            unpack(record.path, folder)
    return target
