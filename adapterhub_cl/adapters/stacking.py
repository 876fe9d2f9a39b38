"""A new LoRA over a frozen one, both active on the base; stored as their exact sum, so that it is self-contained.

ΔW = s₁·B₁A₁ + s₂·B₂A₂ = [s₁B₁ s₂B₂]·[A₁; A₂]: a plain LoRA whose rank is the sum of both ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from adapterhub_cl.adapters.head_files import is_head
from adapterhub_cl.adapters.lora_config import check_config
from adapterhub_cl.adapters.lora_files import check_ranks, config_for, plain_folder, read_weights
from adapterhub_cl.errors import AdapterError, UsageError, first_line

BENEATH = "beneath"
OWN = "default"


def put_beneath(model: Any, folder: Path) -> None:
    """Load a stored adapter under the one in training, frozen; both are active.

    Raises:
        AdapterError: it does not fit, or cannot be summed.
        UsageError: the new adapter cannot be summed.
    """
    if check_config(folder).get("use_dora"):
        raise AdapterError(f"the adapter in {folder} is DoRA, which cannot be added to another", "choose a plain LoRA")
    if model.peft_config[OWN].use_dora:
        raise UsageError("--dora cannot be used on top of another adapter", "omit --dora")
    weights = {key: value for key, value in read_weights(folder).items() if not is_head(key)}
    check_ranks(folder, check_config(folder), weights)
    with warnings.catch_warnings(), plain_folder(folder, headless=True) as plain:
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error is raised below
        try:
            model.load_adapter(str(plain), BENEATH, is_trainable=False, torch_device=str(model.device))
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            line = first_line(error)
            raise AdapterError(f"the adapter in {folder} does not fit this base: {line}", "check its base") from error
    model.base_model.set_adapter([OWN, BENEATH])
    model.set_requires_grad(BENEATH, requires_grad=False)
    there = {name for name, _, _ in factors(model, BENEATH)}
    told = {key.rpartition(".lora_")[0] for key in weights}
    if there != told:
        raise AdapterError(f"the adapter in {folder} does not fit this base: {len(there ^ told)} layers differ")


def factors(model: Any, adapter: str) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """For each layer that the adapter changes: its name, A `[r, in]` and scaled B `[out, r]`."""
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A:
            a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            found.append((name, a.float(), b.float() * layer.scaling[adapter]))
    return found


def stacked(model: Any) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """The sum of the frozen adapter and the one in training, as PEFT stores a single adapter: tensors and config."""
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for adapter in (BENEATH, OWN):
        for name, a, b in factors(model, adapter):
            parts.setdefault(name, []).append((a, b))
    weights: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for name, pairs in parts.items():
        weights[f"{name}.lora_A.weight"] = torch.cat([a for a, _ in pairs], 0).cpu().contiguous()
        weights[f"{name}.lora_B.weight"] = torch.cat([b for _, b in pairs], 1).cpu().contiguous()
        ranks[name.removeprefix("base_model.model.")] = sum(a.shape[0] for a, _ in pairs)
    own = model.peft_config[OWN]
    config = config_for(ranks, _targets(model, ranks), transposed=own.fan_in_fan_out, task_type=own.task_type)
    return weights, config


def _targets(model: Any, names: Mapping[str, int]) -> list[str]:
    """The layers by their last names if those mean exactly them, otherwise by their full names."""
    last = {name.rpartition(".")[2] for name in names}
    meant = {
        name
        for name, module in model.base_model.model.named_modules()
        if name.rpartition(".")[2] in last and (isinstance(module, LoraLayer) or hasattr(module, "weight"))
    }
    return sorted(last) if meant == set(names) else sorted(names)
