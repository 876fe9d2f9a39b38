"""Labels for a batch whose rows have adapters and heads of their own, on an encoder: one pass, then each row's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bank.rows import Mixture
from adapterhub_cl.bases.encoders import head_of
from adapterhub_cl.bases.hidden import padded
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.labelled import LabelledTokeniser
from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.objectives.sequence_classification import by_labels, chosen
from adapterhub_cl.types import Example, Task

Chosen = tuple[str, float, dict[str, float]]


def read_input(base: LoadedBase, task: Task, example: Example, max_length: int) -> tuple[tuple[int, ...], bool]:
    """Ids of an input, and whether it was cut.

    Raises:
        UsageError: a task that is answered by writing.
    """
    if task.kind != "choice":
        raise UsageError(
            f"an encoder answers choice tasks, and {task.name} is a {task.kind} task", "name another --task"
        )
    tokens = LabelledTokeniser(base.tokenizer, task, max_length).prompt(example)
    return tokens.prompt, tokens.truncated


@torch.no_grad()
def classify_rows(
    base: LoadedBase,
    bank: LoraBank,
    tasks: Sequence[Task],
    mixtures: Sequence[Mixture],
    prompts: Sequence[Sequence[int]],
) -> list[Chosen | None]:
    """The answer to each row: label, share and the shares of all; None where a head gives no finite scores.

    Args:
        mixtures: whose LoRA each row is read with; its head is that of the weightiest that has one for the row's task.

    Raises:
        AdapterError: no adapter of a row has a head for its task.
    """
    ids, mask = padded(base, prompts)
    seen: list[torch.Tensor] = []

    def look(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])

    head = head_of(base.model)
    assert head is not None
    with base.lock, base.autocast(), bank.rows(mixtures) as model:
        parts = [_part(bank, task, mixture) for task, mixture in zip(tasks, mixtures, strict=True)]
        hook = model.get_submodule(head.final).register_forward_pre_hook(look)
        try:
            model(input_ids=ids, attention_mask=mask)
        finally:
            hook.remove()
        logits = _scores(seen[0], parts)
    found: list[Chosen | None] = []
    for row, task, (_, _, labels) in zip(logits, tasks, parts, strict=True):
        own = by_labels(row[None], {label: k for k, label in enumerate(labels)}, task.labels)
        found.append(chosen(own, task.labels)[0] if torch.isfinite(own).all() else None)
    return found


def _scores(features: torch.Tensor, parts: Sequence[tuple[torch.Tensor, torch.Tensor, list[str]]]) -> torch.Tensor:
    """Each row's own head on its vector, `[rows, most labels]`, fp32 on the CPU.

    Args:
        features: `[rows, hidden]`.
        parts: weight `[labels, hidden]`, bias and labels of each row's head.
    """
    most = max(len(labels) for _, _, labels in parts)
    weights = features.new_zeros(len(parts), most, features.shape[1], dtype=torch.float32)
    biases = features.new_zeros(len(parts), most, dtype=torch.float32)
    for row, (weight, bias, labels) in enumerate(parts):
        weights[row, : len(labels)] = weight.to(weights.device)
        biases[row, : len(labels)] = bias.to(biases.device)
    found: torch.Tensor = torch.bmm(weights, features[:, :, None])[:, :, 0].float() + biases
    return found.cpu()


def _part(bank: LoraBank, task: Task, mixture: Mixture) -> tuple[Any, Any, list[str]]:
    for ref in sorted(mixture, key=mixture.__getitem__, reverse=True):
        head = bank.head(ref)
        if head is not None and task.name in head.layout:
            return head.part(task.name)
    raise AdapterError(
        f"no head for the task {task.name}: {' + '.join(mixture) or 'the base'} never learned it",
        "an encoder answers through an adapter that learned the task: cl-adapter list",
    )
