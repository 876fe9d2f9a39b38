"""How many bits an adapter's weights are stored in: fp32, bf16 and fp16 in PEFT's format, int8 and int4 packed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from adapterhub_cl.adapters.head_files import write_apart
from adapterhub_cl.adapters.lora_config import PACKED, WEIGHTS
from adapterhub_cl.adapters.lora_files import is_packed, read_weights
from adapterhub_cl.adapters.packed import GROUP, LEVELS, PackedFile, pack, round_trip
from adapterhub_cl.errors import AdapterError, UnknownNameError
from adapterhub_cl.merging.factors import Factors

PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = (*PLAIN, *LEVELS)


def check_kind(kind: str) -> str:
    """Return the storage type unchanged.

    Raises:
        UnknownNameError: it does not exist.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of storage", kind, KINDS)
    return kind


def stored_kind(folder: Path) -> str:
    """How the adapter in a folder is stored: the widest data type of its tensors."""
    if is_packed(folder):
        return PackedFile(folder / PACKED).kind
    found = {value.dtype for value in read_weights(folder).values()}
    return next((kind for kind, dtype in PLAIN.items() if dtype in found), "fp32")


def weights_bytes(folder: Path) -> int:
    """Size of the adapter's weights file."""
    return (folder / (PACKED if is_packed(folder) else WEIGHTS)).stat().st_size


def numbers_bytes(rank: int, shape: tuple[int, int], kind: str) -> int:
    """Size of a layer's factors, without the file's header."""
    if kind in PLAIN:
        return rank * sum(shape) * PLAIN[kind].itemsize
    scales = sum(2 * -(-side // GROUP) for side in shape)
    return rank * (scales + sum(side if kind == "int8" else -(-side // 2) for side in shape))


def after_storage(factors: Factors, kind: str) -> Factors:
    """The factors as they would be read back after storing them.

    Raises:
        AdapterError: a value is too large for the type.
    """
    if kind in PLAIN:
        b, a = (_fitting(m.to(PLAIN[kind]).float(), kind) for m in (factors.b, factors.a))
        return Factors(b, a)
    return Factors(round_trip(factors.b.T, kind).T.contiguous(), round_trip(factors.a, kind))


def _fitting(matrix: torch.Tensor, kind: str) -> torch.Tensor:
    if not torch.isfinite(matrix).all():
        raise AdapterError(f"a weight of this adapter is too large for {kind}", "store it as bf16 or fp32")
    return matrix


def store(folder: Path, kind: str) -> None:
    """Rewrite the plain adapter in a folder with this storage type; the old file is deleted."""
    weights = read_weights(folder)
    if kind in PLAIN:
        converted = {key: value.to(PLAIN[kind]).contiguous() for key, value in weights.items()}
        save_file(converted, folder / WEIGHTS, metadata={"format": "pt"})
        return
    tensors, about = pack(write_apart(folder, weights), kind)
    save_file(tensors, folder / PACKED, metadata=about)
    (folder / WEIGHTS).unlink()
