"""Checkpoints: a sealed safetensors file, written aside and swapped in: kill −9 leaves the old or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapterhub_cl.errors import IntegrityError, StorageError
from adapterhub_cl.registry import seals
from adapterhub_cl.registry.files import fsync_dir
from adapterhub_cl.training.runs import CHECKPOINT

NAME = CHECKPOINT


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        tensors: names with dots (`model.…`, `optimizer.…`, `best.…`, `strategy.…`, `random.…`).
        state: everything else, as JSON.
    """

    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors under a prefix, without it."""
        start = prefix + "."
        return {key[len(start) :]: value for key, value in self.tensors.items() if key.startswith(start)}


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint, all or nothing.

    Raises:
        StorageError: the disk is full or cannot be written; the old checkpoint is untouched.
    """
    temporary = folder / f".{NAME}.{os.getpid()}"
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in checkpoint.tensors.items()}
    try:
        save_file(tensors, temporary, {"state": json.dumps(checkpoint.state), seals.KEY: seals.BLANK})
        seals.seal(temporary)
        temporary.replace(folder / NAME)
        fsync_dir(folder)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"the checkpoint in {folder} cannot be written: {error}", "free some space, then continue with --resume"
        ) from error


def load(folder: Path) -> Checkpoint | None:
    """The folder's checkpoint; None if there is none yet.

    Raises:
        IntegrityError: it is there and cannot be read, or is not the one that was written.
    """
    path = folder / NAME
    if not path.exists():
        return None
    again = f"delete {folder} and start the run again without --resume"
    try:
        if seals.is_broken(path):
            raise IntegrityError(f"{path} cannot be read: it is not what was written, its SHA-256 is another", again)
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", again) from error
    return Checkpoint(tensors, state)


def processes(folder: Path | None) -> int:
    """How many processes began the run that left a checkpoint here; 0 if there is none, or it does not say."""
    stored = None if folder is None else load(folder)
    return 0 if stored is None else int(stored.state["at"].get("processes", 0))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's state as flat tensors: `<parameter index>.<field>`."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(v) for index, state in states.items() for key, v in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The reverse of `optimizer_tensors`."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def random_tensors() -> dict[str, torch.Tensor]:
    """The state of torch's global generators (dropout draws from them)."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random(tensors: Mapping[str, torch.Tensor]) -> None:
    """The reverse of `random_tensors`."""
    torch.set_rng_state(tensors["cpu"])
    for name, state in tensors.items():
        if name.startswith("cuda") and int(name[4:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name[4:]))
