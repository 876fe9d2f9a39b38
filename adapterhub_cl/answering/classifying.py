"""Labels for a batch whose rows have adapters and heads of their own, on an encoder: one pass, then each row's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.choices import likeliest
from adapterhub_cl.bases.encoders import bare, head_of
from adapterhub_cl.data.batches import to_right_padded
from adapterhub_cl.errors import AdapterError
from adapterhub_cl.types import Task

NONE = -1e4  # logit of a label that is not there: its share is 0, and differences of two are finite
NO_HEAD = "an encoder answers through an adapter that learned the task: cl-adapter list"


class HeadPart(NamedTuple):
    """The rows of a head that are one task's labels: weight `[labels, hidden]`, bias `[labels]` and the labels."""

    weight: torch.Tensor
    bias: torch.Tensor
    labels: list[str]


def head_part(model: Any, task: str) -> HeadPart:
    """A task's rows of the head that is on an encoder.

    Raises:
        AdapterError: it has none.
    """
    head = head_of(model)
    assert head is not None  # an encoder is always loaded with one
    if task not in head.layout:
        known = ", ".join(head.layout)
        raise AdapterError(
            f"no head for the task {task}: " + (f"this adapter answers {known}" if known else "the base has none"),
            NO_HEAD,
        )
    layer, rows = bare(model).get_submodule(head.final), list(head.layout[task].values())
    return HeadPart(layer.weight[rows], layer.bias[rows], list(head.layout[task]))


def classify_rows(
    model: Any, tasks: Sequence[Task], parts: Sequence[HeadPart], prompts: Sequence[Sequence[int]], pad_id: int
) -> list[Answer]:
    """The answer to each row, by its own head."""
    seen: list[torch.Tensor] = []

    def look(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])

    head = head_of(model)
    assert head is not None
    hook = bare(model).get_submodule(head.final).register_forward_pre_hook(look)
    try:
        model(**{name: value.to(model.device) for name, value in to_right_padded(prompts, pad_id).items()})
    finally:
        hook.remove()
    return [
        likeliest(task.labels, _by_labels(row, part.labels, task.labels))
        for row, task, part in zip(_scores(seen[0], parts), tasks, parts, strict=True)
    ]


def _scores(features: torch.Tensor, parts: Sequence[HeadPart]) -> torch.Tensor:
    """Each row's own head on its vector, `[rows, most labels]`, fp32 on the CPU.

    Args:
        features: `[rows, hidden]`.
    """
    most = max(len(part.labels) for part in parts)
    weights = features.new_zeros(len(parts), most, features.shape[1], dtype=torch.float32)
    biases = features.new_zeros(len(parts), most, dtype=torch.float32)
    for row, (weight, bias, labels) in enumerate(parts):
        weights[row, : len(labels)] = weight.to(weights.device)
        biases[row, : len(labels)] = bias.to(biases.device)
    found: torch.Tensor = torch.bmm(weights, features[:, :, None])[:, :, 0].float() + biases
    return found.cpu()


def _by_labels(logits: torch.Tensor, known: Sequence[str], labels: Sequence[str]) -> torch.Tensor:
    """Logits `[labels]` in the order of the labels; `NONE` for those that the head does not have."""
    own = dict(zip(known, logits, strict=False))  # behind the known ones stands padding
    return torch.stack([own.get(label, logits.new_tensor(NONE)) for label in labels])
