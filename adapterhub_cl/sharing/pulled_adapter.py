"""What a pull has fetched is opened before it is published: a signature says who made a file, not what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from adapterhub_cl.adapters.lora_config import CONFIG, PACKED, WEIGHTS, check_config, check_names
from adapterhub_cl.errors import AdapterHubError, IntegrityError
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.registry.files import link_or_copy


def check_adapter(ref: str, store: str, brought: Mapping[str, Path], folder: Path) -> None:
    """Read the config and every tensor of a version's adapter as serving does; a pickle is never read.

    Args:
        store: its address, for messages.
        brought: the version's files: name → where each is now.
        folder: where they may be put together for a moment.

    Raises:
        IntegrityError: there is no adapter, it is not a LoRA that this project opens, or a number is not finite.
        StorageError: the disk cannot be written.
    """
    from adapterhub_cl.adapters.head_files import HEAD, LAYOUT  # imports torch

    hint = f"pull other versions by name; {ref} must be pushed again from a hub in which it works"
    if CONFIG not in brought or not (WEIGHTS in brought or PACKED in brought):
        lacks = CONFIG if CONFIG not in brought else WEIGHTS
        raise IntegrityError(f"{ref} in {store} is no adapter: it has no {lacks}", hint)
    together = folder / "together"
    try:
        with storage_errors(folder):
            shutil.rmtree(together, ignore_errors=True)  # of a pull that was killed here
            together.mkdir()
            for name in (CONFIG, WEIGHTS, PACKED, HEAD, LAYOUT):
                if name in brought:
                    link_or_copy(brought[name], together / name)
        _read(together)
    except AdapterHubError as error:
        if error.code not in ("adapter", "integrity"):
            raise
        said = error.message.replace(f"{together}/", "").replace(str(together), "it")
        raise IntegrityError(f"{ref} in {store} is no adapter that can be used: {said}", hint) from error
    finally:
        shutil.rmtree(together, ignore_errors=True)


def _read(folder: Path) -> None:
    from adapterhub_cl.adapters.lora_files import read_weights

    config = check_config(folder)
    if (folder / WEIGHTS).is_file():
        check_names(folder, config, empty=True)
    read_weights(folder)
