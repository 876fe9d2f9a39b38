"""Checks before a version is published: it can be read back, text passes through each of its layers, and it changes
the base's output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from adapterhub_cl.adapters.lora import stored_adapter
from adapterhub_cl.adapters.lora_config import check_config
from adapterhub_cl.adapters.lora_files import LoraFile, check_ranks, read_weights
from adapterhub_cl.adapters.targets import PROBE, is_expert
from adapterhub_cl.bases.encoders import bare, head_of
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import AdapterError, AdapterHubError
from adapterhub_cl.types import AdapterRecord, Problem

LOUDER = 1e4  # factor for the check, for updates too small for the data type that the base computes in


def check_served(model: Any, base: LoadedBase, folder: Path, named: str) -> None:
    """Raise if an adapter could not be served: before publishing, on import, and in `verify --serving`.

    Args:
        model: the base with the adapter active, as loaded by PEFT.
        folder: its files.
        named: how messages refer to it.

    Raises:
        AdapterError: its files are not plain LoRA or DoRA, one of its layers is never used, or it changes nothing.
        IntegrityError: its files cannot be read.
    """
    config, weights = check_config(folder), read_weights(folder)
    check_ranks(folder, config, weights)
    if not config.get("use_dora"):
        with LoraFile(folder):
            pass
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    unused = _unused(model, base, layers)
    if unused:
        raise AdapterError(
            f"{named} changes {len(unused)} layers that text never passes through, such as {_own(unused[0])}",
            "train it on other target modules: cl-adapter add-task chooses layers that are used",
        )
    silent = not any(bool(value.any()) for key, value in weights.items() if ".lora_B" in key)
    if not silent and not config.get("use_dora") and not _changes(model, base, list(layers.values())):
        raise AdapterError(
            f"{named} was loaded, but the base answers the same without it",
            "its layers do not belong to this base: train it on this same base",
        )


def check_all(base: LoadedBase, records: Iterable[AdapterRecord]) -> list[Problem]:
    """The versions that cannot be served on this base; loads each of them."""
    found = []
    for record in records:
        try:
            with stored_adapter(base, record.path) as model:
                check_served(model, base, record.path, record.ref)
        except AdapterHubError as error:
            found.append(Problem(f"adapters/{record.name}/v{record.version}", error.message, error.hint))
    return found


def _unused(model: Any, base: LoadedBase, layers: dict[str, torch.nn.Module]) -> list[str]:
    called: set[str] = set()

    def look(name: str) -> Any:
        return lambda *_: called.add(name)

    hooks = [layer.register_forward_hook(look(name)) for name, layer in layers.items()]
    try:
        _said(model, base)
    finally:
        for one in hooks:
            one.remove()
    return [name for name in layers if name not in called and not is_expert(name)]


def _changes(model: Any, base: LoadedBase, layers: Sequence[Any]) -> bool:
    with model.disable_adapter():
        without = _said(model, base)
    if not torch.equal(_said(model, base), without):
        return True
    with _louder(layers):
        return not torch.equal(_said(model, base), without)


@contextmanager
def _louder(layers: Sequence[Any]) -> Iterator[None]:
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling = {name: value * LOUDER for name, value in layer.scaling.items()}
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


@torch.no_grad()
def _said(model: Any, base: LoadedBase) -> torch.Tensor:
    """The base's output for a few tokens: logits, or an encoder's hidden states."""
    inner = bare(model)
    count = int(inner.get_input_embeddings().num_embeddings)
    ids = (torch.arange(1, PROBE + 1) % count)[None].to(base.device)
    states = {"output_hidden_states": True} if head_of(inner) is not None else {}
    with base.lock, base.autocast():
        told = inner(input_ids=ids, attention_mask=torch.ones_like(ids), **base.reading, **states)
    found: torch.Tensor = told.hidden_states[-1] if states else told.logits
    return found.float()


def _own(name: str) -> str:
    return name.removeprefix("base_model.model.")
