"""Adapters in folders, made of random numbers: for tests that need files and no base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

LAYERS = {
    "model.layers.0.self_attn.q_proj": (24, 16),
    "model.layers.0.mlp.up_proj": (40, 16),
    "model.layers.1.self_attn.q_proj": (24, 16),
    "model.layers.1.mlp.up_proj": (40, 16),
}


def write_random_lora(
    folder: Path,
    ranks: Mapping[str, int],
    *,
    seed: int = 0,
    alpha: float = 8.0,
    rslora: bool = False,
    size: float = 0.1,
    **config: Any,
) -> Path:
    """A plain LoRA with these ranks (layers of `LAYERS`), in PEFT's format."""
    generator = torch.Generator().manual_seed(seed)
    draws = {}
    for name, rank in ranks.items():
        out, in_ = LAYERS[name]
        draws[name] = (
            torch.randn(out, rank, generator=generator) * size,
            torch.randn(rank, in_, generator=generator) * size,
        )
    return write_factors(folder, draws, alpha=alpha, rslora=rslora, **config)


def write_factors(
    folder: Path,
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    alpha: float = 8.0,
    rslora: bool = False,
    targets: Sequence[str] | None = None,
    **config: Any,
) -> Path:
    """A plain LoRA of these B and A, unscaled, in PEFT's format."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {name: a.shape[0] for name, (_, a) in factors.items()}
    most = max(ranks.values())
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": most,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "target_modules": sorted(targets or factors),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != most},
        "base_model_name_or_path": "somewhere",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    weights = {}
    for name, (b, a) in factors.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = a.clone(memory_format=torch.contiguous_format)
        weights[f"base_model.model.{name}.lora_B.weight"] = b.clone(memory_format=torch.contiguous_format)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
