"""Random adapters of the pico Llama, written as PEFT stores them, without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."
HIDDEN, INNER = 32, 64
SHAPES = {  # module → (out, in)
    **{f"model.layers.{k}.self_attn.{p}_proj": (HIDDEN, HIDDEN) for k in range(2) for p in "qkvo"},
    **{f"model.layers.{k}.mlp.{p}_proj": (INNER, HIDDEN) for k in range(2) for p in ("gate", "up")},
    **{f"model.layers.{k}.mlp.down_proj": (HIDDEN, INNER) for k in range(2)},
}


def write_lora(
    folder: Path,
    seed: int = 0,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
    rslora: bool = False,
    modules: Any = ("q_proj", "v_proj", "down_proj"),
    size: float = 0.3,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """A random adapter in `folder`.

    Args:
        ranks, alphas: whole module name → its own rank or alpha.
        modules: last names of the layers, or whole ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, in_) in SHAPES.items():
        if name.rpartition(".")[2] not in modules and name not in modules:
            continue
        r = (ranks or {}).get(name, rank)
        for key, shape in (("A", (r, in_)), ("B", (out, r))):
            value = torch.randn(shape, generator=generator) * size
            tensors[f"{PREFIX}{name}.lora_{key}.weight"] = value.to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(modules),
        "use_rslora": rslora,
        "rank_pattern": dict(ranks or {}),
        "alpha_pattern": dict(alphas or {}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": "pico",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def dense(folder: Path) -> dict[str, torch.Tensor]:
    """Module → ΔW of a stored adapter, in fp64, computed from the files by the definition alone."""
    from safetensors.torch import load_file

    about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, (out, in_) in SHAPES.items():
        a, b = (tensors.get(f"{PREFIX}{name}.lora_{key}.weight") for key in "AB")
        if a is None or b is None:
            found[name] = torch.zeros(out, in_, dtype=torch.float64)
            continue
        alpha = about["alpha_pattern"].get(name, about["lora_alpha"])
        rank = about["rank_pattern"].get(name, about["r"])
        scaling = alpha / rank**0.5 if about.get("use_rslora") else alpha / rank
        found[name] = scaling * b.double() @ a.double()
    return found


def relative(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """‖one − other‖ ÷ ‖other‖ over all modules."""
    apart = sum(float((one[name].double() - other[name].double()).square().sum()) for name in other)
    whole = sum(float(value.double().square().sum()) for value in other.values())
    return float((apart / whole) ** 0.5)
