"""Writes an adapter so that a stock vLLM loads it as it is: one rank that vLLM allows for all layers, the scaling
inside of B, nothing else in its config. No model is needed, and PEFT neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub_cl.adapters.lora_config import CONFIG, PREFIX, WEIGHTS, asked_plainly, check_config, has_head, is_dora
from adapterhub_cl.errors import AdapterError

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.adapters.lora_files import LoraFile

EXPORTS = "server/engine"  # inside a hub: the folders from which a vLLM loads its versions; made again when missing
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's MaxLoRARanks from 8 on; its kernels are made for these
Outline = tuple[bytes, dict[str, tuple[int, ...]]]  # of a folder: its config, and the shapes of its tensors
# Layers that vLLM replaces as a whole or not at all; a LoRA on them is dropped or refused there.
_WHOLE = ("embed_tokens", "wte", "lm_head", "embed_out", "output_embedding")


def write_vllm_folder(folder: Path, made: Path, base_name: str) -> int:
    """Write a stored adapter in PEFT's format, fp32, for vLLM; the rank it has there.

    Args:
        folder: a version's files, packed or not.
        made: an existing folder.
        base_name: what the config says of the base.

    Raises:
        AdapterError: vLLM cannot serve such an adapter.
        IntegrityError: its files cannot be read.
    """
    import torch
    from safetensors.torch import save_file

    from adapterhub_cl.adapters.lora_files import LoraFile

    why_not_vllm(folder)
    weights: dict[str, torch.Tensor] = {}
    with LoraFile(folder) as file:
        modules = file.modules
        if not modules:
            raise AdapterError(f"the adapter in {folder} has no layers", "there is nothing to serve: use the base")
        most = max(file.rank(module) for module in modules)
        if most > RANKS[-1]:
            raise AdapterError(
                f"the adapter in {folder} has rank {most}, and vLLM takes at most {RANKS[-1]}",
                f"make it smaller first: cl-adapter prune NAME --rank {RANKS[-1]}",
            )
        rank = next(one for one in RANKS if one >= most)
        for module in modules:
            _refuse_layer(folder, module)
            b, a = file.factors(module)
            key = f"{PREFIX}{module}.lora_"
            weights[f"{key}A.weight"] = torch.cat([a, a.new_zeros(rank - a.shape[0], a.shape[1])])
            weights[f"{key}B.weight"] = torch.cat([b, b.new_zeros(b.shape[0], rank - b.shape[1])], 1)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": bool(file.config.get("fan_in_fan_out")),
            "target_modules": _targets(file),
            "inference_mode": True,
        }
    save_file({key: value.contiguous() for key, value in weights.items()}, made / WEIGHTS, metadata={"format": "pt"})
    (made / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return rank


def outline(folder: Path) -> Outline:
    """Config and shapes of what `write_vllm_folder` wrote."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no dict)
    return (folder / CONFIG).read_bytes(), shapes


def write_zeros(like: Outline, made: Path) -> None:
    """Write an adapter with factors of zero: it changes nothing."""
    import torch
    from safetensors.torch import save_file

    config, shapes = like
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, made / WEIGHTS, metadata={"format": "pt"})
    (made / CONFIG).write_bytes(config)


def largest_difference(folder: Path, made: Path) -> tuple[float, bool]:
    """How far the change of a layer, ΔW = B·A, differs between a version and what was written for vLLM: the largest
    difference of a factor relative to the layer's largest number, and whether any layer changes anything.

    Raises:
        AdapterError, IntegrityError: one of them cannot be read.
    """
    from adapterhub_cl.adapters.lora_files import LoraFile

    apart, changes = 0.0, False
    with LoraFile(folder) as own, LoraFile(made) as other:
        if set(own.modules) != set(other.modules):
            return float("inf"), True
        for module in own.modules:
            for mine, theirs in zip(own.factors(module), other.factors(module), strict=True):
                rows, columns = mine.shape
                most = float(mine.abs().max())
                change = max(float((theirs[:rows, :columns] - mine).abs().max()), _beyond(theirs, rows, columns))
                apart = max(apart, change / most if most else change)
            changes = changes or bool(own.factors(module)[0].any())
    return apart, changes


def _beyond(padded: torch.Tensor, rows: int, columns: int) -> float:
    """The largest number in what was padded."""
    parts = [part.abs().max() for part in (padded[rows:], padded[:, columns:]) if part.numel()]
    return float(max(parts, default=0.0))


def why_not_vllm(folder: Path) -> None:
    """Raise if the adapter in a folder is of a kind that vLLM cannot serve; its tensors are not read.

    Raises:
        AdapterError: it is DoRA, or an encoder's with a head.
    """
    if is_dora(folder):
        raise AdapterError(
            f"the adapter in {folder} is DoRA, which vLLM does not serve",
            "export the whole model with the adapter inside: cl-adapter export … --format merged",
        )
    if has_head(folder):
        raise AdapterError(
            f"the adapter in {folder} belongs to an encoder and has a head, which vLLM does not serve as a LoRA",
            "export it with --format peft, or let cl-adapter serve answer",
        )
    check_config(folder)


def _refuse_layer(folder: Path, module: str) -> None:
    parts = module.split(".")
    if "experts" in parts:
        raise AdapterError(
            f"the adapter in {folder} changes experts ({module}), which vLLM loads in another form",
            "train it on attention and shared layers, or export it with --format merged",
        )
    if parts[-1] in _WHOLE:
        raise AdapterError(
            f"the adapter in {folder} changes {module}, on which vLLM applies no LoRA",
            "export the whole model with the adapter inside: cl-adapter export … --format merged",
        )


def _targets(file: LoraFile) -> list[str]:
    """The layers by the names that training chose them by, or by their full names where that was done in another way.
    (vLLM itself goes by the tensors.)"""
    plain = asked_plainly(file.config) and not file.config.get("layers_to_transform")
    return sorted(file.config["target_modules"] if plain else file.modules)
