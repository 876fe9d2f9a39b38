"""Random adapters of the pico Llama, written as PEFT stores them, without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stored_loras import write_factors

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
    **config: Any,
) -> Path:
    """A random adapter in `folder`.

    Args:
        ranks, alphas: whole module name → its own rank or alpha.
        modules: last names of the layers, or whole ones.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = {}
    for name, (out, in_) in SHAPES.items():
        if name.rpartition(".")[2] in modules or name in modules:
            r = (ranks or {}).get(name, rank)
            a, b = (torch.randn(shape, generator=generator) * size for shape in ((r, in_), (out, r)))
            draws[name] = (b, a)
    about = {"alpha_pattern": dict(alphas or {}), "base_model_name_or_path": "pico", **config}
    return write_factors(folder, draws, alpha=alpha, rslora=rslora, targets=modules, **about)


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
