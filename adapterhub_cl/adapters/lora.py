"""LoRA on a frozen base, through PEFT: attach, check, read, save, load."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from adapterhub_cl.adapters.head_files import PREFIX
from adapterhub_cl.adapters.heads import begin_head, check_kind, put_plain_head, read_head, with_head
from adapterhub_cl.adapters.lora_config import WEIGHTS, check_config
from adapterhub_cl.adapters.lora_files import check_ranks, plain_folder, read_weights, sort_config, write_config
from adapterhub_cl.adapters.targets import choices, targets_of
from adapterhub_cl.bases.encoders import head_of, put_head, take_head
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import AdapterError, TrainingError, UsageError, first_line
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import Task


@contextmanager
def new_adapter(
    base: LoadedBase,
    settings: TrainingSettings,
    task_type: str,
    start: Path | None = None,
    beneath: Path | None = None,
    tasks: Sequence[Task] = (),
) -> Iterator[Any]:
    """The base with one trainable LoRA, which is removed at the end of the block.

    Args:
        tasks: for an encoder: the tasks whose labels need rows in the head, in addition to the existing ones.
        start: a stored adapter to start from: its shape and its weights. None creates a new one.
        beneath: a stored adapter that stays active and frozen under the new one.

    Raises:
        UsageError: the target modules or layers are not in this base.
        AdapterError: the adapter to start from does not fit this base.
    """
    torch.manual_seed(settings.seed)
    if start is None:
        model = _attach(base, settings, task_type)
    else:
        model = open_adapter(base.model, start, trainable=True)
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and "default" in layer.lora_dropout:
                chance = settings.dropout
                layer.lora_dropout["default"] = torch.nn.Dropout(chance) if chance else torch.nn.Identity()
        model.peft_config["default"].lora_dropout = settings.dropout
    try:
        begin_head(base.model, tasks, start or beneath, settings.seed)
        if beneath is not None:
            from adapterhub_cl.adapters.stacking import put_beneath

            put_beneath(model, beneath)
        yield model
    finally:
        model.unload()
        take_head(base.model)
        base.model.eval()  # the mode it was loaded in; training changed it


def _attach(base: LoadedBase, settings: TrainingSettings, task_type: str) -> Any:
    layers = settings.layer_numbers()
    text = base.model.config.get_text_config()
    if layers and layers[-1] >= text.num_hidden_layers:
        raise UsageError(
            f"--layers {settings.layers}: this base has {text.num_hidden_layers} layers",
            f"use numbers from 0 to {text.num_hidden_layers - 1}",
        )
    if settings.rank > text.hidden_size:
        raise UsageError(
            f"--rank {settings.rank} is larger than the width of this base, {text.hidden_size}", "8 to 64 is usual"
        )
    encoder = head_of(base.model) is not None
    named = [name.strip() for name in settings.target_modules.split(",") if name.strip()]
    asked = None if settings.target_modules == "all-linear" else named
    targets = targets_of(base, asked, None)
    if layers is not None:
        short = not encoder and not any("." in name for name in targets)
        chosen = targets_of(base, asked, layers)
        targets, layers = (targets, layers) if short else (chosen, None)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.effective_alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        fan_in_fan_out=_transposed(base.model),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=True if settings.init == "default" else settings.init,  # type: ignore[arg-type]
        task_type=None if encoder else task_type or None,
        bias="none",
    )
    try:
        model = get_peft_model(base.model, config)
        config.init_lora_weights = True  # stored: who opens the adapter need not draw values that are replaced
        return model
    except ValueError as error:
        _strip(base.model)
        reason = first_line(error)
        raise UsageError(
            f"--target-modules {settings.target_modules!r}: {reason}",
            f"the linear layers of this base are {', '.join(choices(base))}",
        ) from error


@contextmanager
def stored_adapter(base: LoadedBase, folder: Path) -> Iterator[Any]:
    """The base with a stored, frozen adapter, which is removed at the end of the block. Other threads wait."""
    with base.lock:
        model = open_adapter(base.model, folder)
        try:
            yield model
        finally:
            model.unload()
            take_head(base.model)


def open_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """A stored adapter on a model, as plain PEFT opens it (a packed one is unpacked first); all keys must match
    exactly. An encoder's head is put on the model separately, see `adapterhub_cl.bases.encoders`.

    Raises:
        AdapterError: it is not a supported LoRA, or does not fit this base.
        IntegrityError: its files cannot be read.
    """
    config = check_config(folder)
    check_kind(model, folder, config)
    weights = read_weights(folder)
    check_ranks(folder, config, weights)
    head = head_of(model)
    stored = read_head(folder, head.final) if head is not None else None
    if stored is not None:
        weights = {key: value for key, value in weights.items() if ".lora_" in key}
    keys = set(weights)
    try:
        with warnings.catch_warnings(), plain_folder(folder, headless=True) as plain:
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error is raised below
            opened = PeftModel.from_pretrained(model, str(plain), is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        _strip(model)
        model_error = first_line(error)
        raise AdapterError(
            f"the adapter in {folder} does not fit this base: {model_error}",
            "it must have been trained on this same base",
        ) from error
    have = set(get_peft_model_state_dict(opened, save_embedding_layers=False))
    if have != keys:
        opened.unload()
        missing, extra = sorted(have - keys), sorted(keys - have)
        what = f"{len(missing)} missing" + (f" (first: {missing[0]})" if missing else "")
        what += f", {len(extra)} unexpected" + (f" (first: {extra[0]})" if extra else "")
        raise AdapterError(f"the adapter in {folder} does not fit this base: {what} tensors", "check its base")
    if stored is not None:
        try:
            put_head(model, stored.layout, stored.tensors)
        except AdapterError:
            opened.unload()
            raise
    return opened


def open_plain(model: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A stored adapter of an encoder as plain PEFT opens it, head included, for use without this project.

    Raises:
        AdapterError, IntegrityError: as `open_adapter`.
    """
    check_kind(model, folder, check_config(folder))
    put_plain_head(model, folder, dtype)
    with plain_folder(folder) as plain:
        return PeftModel.from_pretrained(model, str(plain))


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters to train, checked to be only those of LoRA (and of an encoder's head).

    Raises:
        TrainingError: there are none, or one belongs to the base.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    meant = {name for name, _ in model.named_parameters() if ".lora_" in name and ".default" in name}
    head = head_of(model)
    if head is not None and head.layout:
        meant |= {PREFIX + head.weight, PREFIX + head.bias}
    if not found or found.keys() != meant:
        wrong = sorted(found.keys() ^ meant)[:3]
        raise TrainingError(f"the trainable parameters are not exactly those of LoRA (differing: {', '.join(wrong)})")
    return found


def training_mode(model: Any) -> None:
    """Enable LoRA's dropout; the frozen base stays in evaluation mode, without dropout."""
    model.eval()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout.train()


def save_adapter(model: Any, folder: Path, source: str, tasks: Collection[str] = ()) -> None:
    """Write the adapter in PEFT's format; one on top of a frozen one is written as the sum of both.

    Args:
        source: the base's name that plain PEFT will find in the config.
        tasks: for an encoder: those whose rows of the head are stored.
    """
    from adapterhub_cl.adapters.stacking import BENEATH, stacked

    if BENEATH in model.peft_config:
        weights, config = stacked(model)
        weights = with_head(model, weights, config, folder, tasks)
        write_config(config, folder, source)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    elif head_of(model) is not None:
        config = copy.deepcopy(model.peft_config["default"])
        config.inference_mode = True
        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        weights = with_head(model, weights, config, folder, tasks)
        write_config(config, folder, source)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    else:
        model.peft_config["default"].base_model_name_or_path = source
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours is written when publishing
        sort_config(folder)


def _strip(model: torch.nn.Module) -> None:
    """Remove what PEFT attached before it failed."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _transposed(model: torch.nn.Module) -> bool:
    """Whether the base stores its linear layers as GPT-2 does, `[in, out]`."""
    return any(isinstance(module, Conv1D) for module in model.modules())
