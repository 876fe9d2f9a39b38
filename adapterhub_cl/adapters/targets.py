"""Which layers of a base get a LoRA: the linear layers that text really passes through, and that can be served.

Some layers are read by their weight instead of being called (Mamba's `dt_proj`), do not return a tensor (a router),
get only some of the tokens (an expert), or belong to a vision tower: LoRA on any of these would learn nothing, or give
a version that cannot be used. One short pass with hooks finds the layers that are called with every token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from adapterhub_cl.bases.encoders import bare, head_of
from adapterhub_cl.bases.hidden import in_tower
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import UsageError

ROWS, PROBE = 2, 8  # of that pass: rows, and tokens in each
_EXPERT = re.compile(r"(^|\.)experts\.")


def is_expert(name: str) -> bool:
    """Whether a layer is one expert of a mixture: it gets only the tokens that the router sends it."""
    return bool(_EXPERT.search(name))


def usable_layers(base: LoadedBase) -> list[str]:
    """Full names of the layers that can get a LoRA, in the model's order; determined once for each loaded base."""
    inner = bare(base.model)
    if not hasattr(inner, "_adapterhub_layers"):
        inner._adapterhub_layers, inner._adapterhub_length_first = _find(base)
    return list(inner._adapterhub_layers)


def length_first(base: LoadedBase) -> set[str]:
    """The usable layers whose input is `[length, rows, in]` (as in Longformer), not `[rows, length, in]`."""
    usable_layers(base)
    return set(bare(base.model)._adapterhub_length_first)


def all_linear(base: LoadedBase) -> list[str]:
    """Full names of the layers that PEFT's `all-linear` means: every linear layer except the output layer."""
    inner = bare(base.model)
    head, own = inner.get_output_embeddings(), head_of(inner)
    outside = own.modules if own is not None else ()
    return [
        name
        for name, module in inner.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not head
        and not any(f"{name}.".startswith(f"{part}.") for part in outside)
    ]


def choices(base: LoadedBase) -> list[str]:
    """The distinct last names of the usable layers, for messages."""
    return sorted({name.rpartition(".")[2] for name in usable_layers(base)})


def targets_of(base: LoadedBase, names: Sequence[str] | None, layers: Sequence[int] | None) -> list[str]:
    """The layers that get a LoRA, as names for PEFT: last names if those mean exactly them, otherwise full names.

    Args:
        names: last names or full ones; None: all usable layers.
        layers: layer numbers; None: all, including modules outside the layers.

    Raises:
        UsageError: a name or number that matches no layer, or only layers that cannot have a LoRA.
    """
    usable = usable_layers(base)
    there = [name for name, _ in bare(base.model).named_modules()]
    for asked in names or ():
        if any(_means(asked, name) for name in usable):
            continue
        known = any(_means(asked, name) for name in there)
        raise UsageError(
            f"--target-modules {asked!r} matches no layer of this base"
            + (" that can have a LoRA: tokens do not pass through it, or only some do" if known else ""),
            f"its linear layers are {', '.join(choices(base))}",
        )
    wanted = [
        name
        for name in usable
        if (names is None or any(_means(asked, name) for asked in names))
        and (layers is None or any(f".{number}." in name for number in layers))
    ]
    if not wanted:
        raise UsageError(
            f"--target-modules {','.join(names) if names else 'all-linear'!r}"
            + (f" with --layers {','.join(map(str, layers))}" if layers is not None else "")
            + " matches no layer of this base",
            f"its linear layers are {', '.join(choices(base))}",
        )
    return shortened(wanted, there)


def left_out(base: LoadedBase) -> str:
    """A note if `all-linear` leaves out linear layers or experts; empty if it covers all of them."""
    inner, usable = bare(base.model), set(usable_layers(base))
    fused = {
        name.rpartition(".")[0]
        for name, value in inner.named_parameters()
        if value.dim() == 3 and is_expert(name)  # all experts of a layer in one tensor
    }
    missed = [name for name in all_linear(base) if name not in usable]
    experts = bool(fused) or any(is_expert(name) for name in missed)
    tower = any(in_tower(name) for name in missed)
    others = {name.rpartition(".")[2] for name in missed if not is_expert(name) and not in_tower(name)}
    kinds = ["the experts"] * experts + ["the towers of images and sound"] * tower + sorted(others - set(choices(base)))
    if not kinds:
        return ""
    stay = f"{kinds[0]} stays" if len(kinds) == 1 and not (experts or tower) else f"{', '.join(kinds)} stay"
    return f"note: LoRA is added to {', '.join(choices(base))}; {stay} unchanged, because LoRA there is not supported"


def shortened(wanted: Collection[str], there: Collection[str]) -> list[str]:
    """The layers by their last names if those mean exactly them among all layers, otherwise by full names."""
    last = {name.rpartition(".")[2] for name in wanted}
    exact = {name for name in there if name.rpartition(".")[2] in last} == set(wanted)
    return sorted(last) if exact else sorted(wanted)


def _means(asked: str, name: str) -> bool:
    return name == asked or name.endswith(f".{asked}")


def _find(base: LoadedBase) -> tuple[list[str], set[str]]:
    inner = bare(base.model)
    candidates = {name: inner.get_submodule(name) for name in all_linear(base) if not is_expert(name)}
    reached: set[str] = set()
    turned: set[str] = set()

    def look(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not inputs or not _is_product(module, inputs[0], output):
                return
            first, second = inputs[0].shape[0], inputs[0].shape[1]
            if inputs[0].dim() == 2 and first in (ROWS, ROWS * PROBE):
                reached.add(name)
            elif inputs[0].dim() == 3 and ROWS in (first, second):
                reached.add(name)
                if first != ROWS:
                    turned.add(name)

        return hook

    count = int(inner.get_input_embeddings().num_embeddings)
    ids = (torch.arange(1, ROWS * PROBE + 1) % count).view(ROWS, PROBE).to(base.device)
    hooks = [module.register_forward_hook(look(name)) for name, module in candidates.items()]
    try:
        with base.lock, torch.no_grad(), base.autocast():
            inner(input_ids=ids, attention_mask=torch.ones_like(ids), **base.reading)
    finally:
        for one in hooks:
            one.remove()
    last_names = {name.rpartition(".")[2] for name in reached}
    refused = {last for last in last_names if _moved(inner, last) or _refused_by_peft(inner, last)}
    return [name for name in candidates if name in reached and name.rpartition(".")[2] not in refused], turned


def _is_product(module: Any, x: torch.Tensor, output: Any) -> bool:
    """Whether a layer returns exactly its weight's product: subclasses (routers) may do something else."""
    if not isinstance(output, torch.Tensor):
        return False
    kind = type(module)
    if isinstance(module, Conv1D) or kind.__module__.startswith("bitsandbytes.") or kind is torch.nn.Linear:
        return True
    right = functional.linear(x, module.weight, module.bias)
    return output.shape == right.shape and torch.allclose(output, right, rtol=1e-2, atol=1e-2)


def _moved(model: Any, last: str) -> bool:
    """Whether PEFT takes a layer's last name for one of the stacked expert weights, whatever the layer is."""
    config = LoraConfig(target_modules={last}, r=1)
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # one of two stacked weights
        return True
    return last not in config.target_modules


def _refused_by_peft(model: Any, last: str) -> bool:
    """Whether PEFT rejects a layer because this architecture's kernels (Mamba) read it by its weight."""
    try:
        _check_lora_target_modules_mamba(LoraConfig(target_modules={last}), model, last)
    except ValueError:
        return True
    return False
