"""An encoder's head in training: attach it with rows for every label, remove it, write it beside its LoRA."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from adapterhub_cl.adapters.head_files import PREFIX, StoredHead, grown, head_of_tensors, write_layout
from adapterhub_cl.adapters.lora_config import CLASSIFIES, has_head
from adapterhub_cl.adapters.lora_files import read_weights
from adapterhub_cl.bases.encoders import Head, bare, head_of, head_tensors, put_head
from adapterhub_cl.errors import AdapterError
from adapterhub_cl.types import Task


def begin_head(model: Any, tasks: Sequence[Task], start: Path | None, seed: int) -> None:
    """Put a trainable head on an encoder: the rows of the version that the run continues from or trains on top of, and
    new rows for the other labels of these tasks. Does nothing on other bases, or without a choice task."""
    head = head_of(model)
    if head is None:
        return
    old = read_head(start, head.final) if start is not None else None
    choices = [task for task in tasks if task.kind == "choice"]
    if old is None and not choices:
        return
    if old is None:
        width = bare(model).get_submodule(head.final).in_features
        empty = {head.weight: torch.zeros(0, width), head.bias: torch.zeros(0)}
        old = StoredHead({}, {**head.neck, **empty}, head.final)
    new = grown(old, choices, seed)
    put_head(model, new.layout, new.tensors, trainable=True)


def read_head(folder: Path, final: str) -> StoredHead | None:
    """The head of a stored adapter; None if it has none.

    Args:
        final: name of the layer whose rows are labels.
    """
    return head_of_tensors(folder, read_weights(folder), final) if has_head(folder) else None


def check_kind(model: Any, folder: Path, config: dict[str, Any]) -> None:
    """Raise if an adapter is for another kind of base.

    Raises:
        AdapterError: an encoder's adapter on a causal base, or the reverse.
    """
    kind = config.get("task_type")
    if head_of(model) is None and kind == CLASSIFIES:
        raise AdapterError(
            f"the adapter in {folder} is for {kind}, but this base is a causal language model",
            "only CAUSAL_LM adapters can be used here; create a hub with its encoder as the base",
        )
    if head_of(model) is not None and kind == "CAUSAL_LM":
        raise AdapterError(
            f"the adapter in {folder} is for {kind}, but this base is an encoder",
            f"only {CLASSIFIES} adapters can be used here",
        )


def with_head(
    model: Any, weights: dict[str, torch.Tensor], config: LoraConfig, folder: Path, tasks: Collection[str]
) -> dict[str, torch.Tensor]:
    """All tensors of an encoder's adapter with PEFT's names; updates the config, and writes the meaning of the rows.

    Args:
        tasks: whose rows are stored; the others were needed only for training.
    """
    head = head_of(model)
    if head is None or not head.layout:
        return weights
    kept = StoredHead(head.layout, head_tensors(model), head.final).only(tasks)
    config.task_type, config.modules_to_save = CLASSIFIES, list(head.modules)
    write_layout(folder, kept.layout, head.final)
    return {**weights, **{f"{PREFIX}{key}": value.float().contiguous() for key, value in kept.tensors.items()}}


def put_plain_head(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Give an encoder the head of a stored adapter for use without this project: a plain layer, with named labels.

    Args:
        dtype: of the head.
    """
    head = head_of(model)
    stored = read_head(folder, head.final) if head is not None else None
    if stored is not None:
        put_head(model, {}, stored.tensors)
        model.config.num_labels = len(stored.weight)
        several = len(stored.layout) > 1
        for task, rows in stored.layout.items():
            for label, row in rows.items():
                model.config.id2label[row] = f"{task}: {label}" if several else label
        model.config.label2id = {label: row for row, label in model.config.id2label.items()}
        model.get_submodule(head.final).to(dtype)  # type: ignore[union-attr]
    del model._adapterhub_head


def mark_plain_head(model: Any, folder: Path) -> None:
    """Let this project answer with an encoder that plain transformers opened with the head of a stored adapter."""
    stored = head_of_tensors(folder, read_weights(folder))
    model._adapterhub_head = Head(stored.final, (), {}, stored.layout)
