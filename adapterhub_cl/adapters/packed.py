"""LoRA factors in 8 or 4 bits, in a safetensors file: the format, its reader and writer.

Each factor is stored rank by rank (A as it is, B transposed), so that a group never mixes two rank-one parts of very
different size. A row is cut into groups of 64 numbers; each group has one scale s, its largest absolute value ÷
levels, in bf16, and codes q with x ≈ s·q, |x − s·q| ≤ s/2 (slightly more for the largest numbers if bf16
rounded s down). bf16 and not fp16: scales of small updates would underflow in fp16. int4 has two codes in a byte, the
first in the low half, each plus 8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from adapterhub_cl.errors import IntegrityError

GROUP = 64
LEVELS = {"int8": 127, "int4": 7}
FORMAT, ABOUT = 1, "packed"
_CODES, _SCALES = ".codes", ".scales"


def quantise(rows: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix, group by group along its rows.

    Args:
        rows: `[r, n]`.
        kind: `int8` or `int4`.

    Returns:
        codes, int8 `[r, n]` or uint8 `[r, ⌈n/2⌉]`; scales, bf16 `[r, ⌈n/64⌉]`.
    """
    n, levels = rows.shape[1], LEVELS[kind]
    padded = torch.nn.functional.pad(rows.float(), (0, -n % GROUP))
    groups = padded.view(len(padded), padded.shape[1] // GROUP, GROUP)
    scales = (groups.abs().amax(2) / levels).to(torch.bfloat16)
    steps = scales.float().clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(2)
    codes = (groups / steps).round().clamp(-levels, levels).to(torch.int8).flatten(1)[:, :n]
    if kind == "int8":
        return codes.contiguous(), scales.contiguous()
    halves = torch.nn.functional.pad(codes + 8, (0, n % 2), value=8).to(torch.uint8)
    return (halves[:, ::2] | (halves[:, 1::2] << 4)).contiguous(), scales.contiguous()


def dequantise(codes: torch.Tensor, scales: torch.Tensor, n: int) -> torch.Tensor:
    """The fp32 matrix `[r, n]` that codes and scales represent."""
    if codes.dtype == torch.uint8:
        codes = torch.stack([codes & 15, codes >> 4], 2).flatten(1)[:, :n].to(torch.int8) - 8
    each = scales.float().repeat_interleave(GROUP, 1)[:, :n]
    return codes.float() * each


def round_trip(rows: torch.Tensor, kind: str) -> torch.Tensor:
    """A matrix `[r, n]` after packing and unpacking."""
    return dequantise(*quantise(rows, kind), rows.shape[1])


def pack(weights: Mapping[str, torch.Tensor], kind: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a packed file.

    Args:
        weights: tensors of a plain LoRA by their names in PEFT's format.
    """
    tensors: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        tensors[key + _CODES], tensors[key + _SCALES] = quantise(value.T if _transposed(key) else value, kind)
    shapes = {key: list(value.shape) for key, value in weights.items()}
    about = {"kind": kind, "format": FORMAT, "group": GROUP, "shapes": shapes}
    return tensors, {ABOUT: json.dumps(about)}  # one entry: safetensors writes several in a varying order


def _transposed(key: str) -> bool:
    return ".lora_B." in key


class PackedFile:
    """An open packed file: names and shapes as in the plain file, tensors unpacked on demand.

    Raises:
        IntegrityError: not a packed file, or written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            opened: Any = safe_open(path, framework="pt")
            self._file = opened
            about = json.loads((opened.metadata() or {}).get(ABOUT) or "null")
            if not isinstance(about, dict):
                raise ValueError("it does not say how it is packed")
            kind, form, group = (about[key] for key in ("kind", "format", "group"))
            self._shapes = {str(k): (int(r), int(c)) for k, (r, c) in about["shapes"].items()}
            told = {key + end for key in self._shapes for end in (_CODES, _SCALES)}
            if (form, group) != (FORMAT, GROUP) or kind not in LEVELS or told != set(opened.keys()):
                raise ValueError(f"packing {kind}, format {form}, groups of {group} is not supported")
            for key in self._shapes:
                self._check(key, kind)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{path} cannot be read: {error}", "run cl-adapter verify") from error
        self.kind: str = kind

    def _check(self, key: str, kind: str) -> None:
        rows, n = self._laid(key)
        codes, scales = (self._file.get_slice(key + end) for end in (_CODES, _SCALES))
        width = n if kind == "int8" else -(-n // 2)
        if codes.get_shape() != [rows, width] or codes.get_dtype() != ("I8" if kind == "int8" else "U8"):
            raise ValueError(f"the codes of {key} have the wrong shape")
        if scales.get_shape() != [rows, -(-n // GROUP)] or scales.get_dtype() != "BF16":
            raise ValueError(f"the scales of {key} have the wrong shape")

    def _laid(self, key: str) -> tuple[int, int]:
        first, second = self._shapes[key]
        return (second, first) if _transposed(key) else (first, second)

    def keys(self) -> list[str]:
        return list(self._shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def tensor(self, key: str) -> torch.Tensor:
        """fp32."""
        rows = dequantise(self._file.get_tensor(key + _CODES), self._file.get_tensor(key + _SCALES), self._laid(key)[1])
        return rows.T.contiguous() if _transposed(key) else rows


class PlainFile:
    """An open plain safetensors file, with the same methods."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            opened: Any = safe_open(path, framework="pt")
            self._file, self._keys = opened, list(opened.keys())
        except (OSError, SafetensorError) as error:
            raise IntegrityError(f"{path} cannot be read: {error}", "run cl-adapter verify") from error

    def keys(self) -> list[str]:
        return list(self._keys)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(key).get_shape())

    def tensor(self, key: str) -> torch.Tensor:
        try:
            found: torch.Tensor = self._file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise IntegrityError(f"{self.path} cannot be read: {error}", "run cl-adapter verify") from error
        return found
