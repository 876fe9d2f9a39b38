"""Length-bucketed batches. The plan of an epoch depends only on the seed, so that a resumed run repeats it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from adapterhub_cl.data.preference_tokens import PreferenceTokens, joined
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.data.unpadded import Unpadded, unpadded

IGNORED = -100
MULTIPLE = 8


@dataclass(frozen=True)
class Batch:
    """Right-padded rows.

    Attributes:
        input_ids: `[rows, length]`.
        attention_mask: `[rows, length]`, 1 on tokens, 0 on padding.
        labels: `[rows, length]`, each token at its own position, -100 on prompt and padding.
        indices: the example in each row.
        weights: `[rows, length]`, the weight of each label in the loss; None: 1 everywhere.
        tasks: for each row, the task if the answer is one of its labels, otherwise the empty string; empty if no row
            has a task. The label of such a row, its number among the task's labels, is in column 1 of `labels`.
        unpadded: the same rows without padding, where the model is to compute them so.
        judged: place of an example among `indices` → its preference, where it has one. Behind the rows of all examples
            stand those with the pairs' rejected answers, in this order.
        beside: answers to other questions, one for each of `judged` that is no pair.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    indices: tuple[int, ...]
    weights: torch.Tensor | None = None
    tasks: tuple[str, ...] = ()
    unpadded: Unpadded | None = None
    judged: Mapping[int, PreferenceTokens] = field(default_factory=dict)
    beside: Batch | None = None

    def to(self, device: torch.device) -> Batch:
        weights = None if self.weights is None else self.weights.to(device)
        ids, mask, labels = (x.to(device) for x in (self.input_ids, self.attention_mask, self.labels))
        joined = None if self.unpadded is None else self.unpadded.to(device)
        beside = None if self.beside is None else self.beside.to(device)
        return Batch(ids, mask, labels, self.indices, weights, self.tasks, joined, self.judged, beside)

    @property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of the positions whose next token counts in the loss, in row order."""
        rows, columns = (self.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        return rows, columns

    @property
    def tokens(self) -> int:
        return int(self.attention_mask.sum())


def plan_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, pool: int = 32) -> list[list[int]]:
    """The examples of each batch, in order.

    Examples are shuffled, sorted by length within pools of `pool` batches, cut into batches, and the batches are
    shuffled: this gives little padding, yet a different order in every epoch.

    Args:
        lengths: tokens of each example.
        batch_size: rows of one optimiser step.

    Returns:
        a list of example indices for each step; the last one may be shorter. Every index occurs once.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    width = batch_size * pool
    for start in range(0, len(order), width):
        part = sorted(order[start : start + width], key=lambda i: lengths[i])
        batches += [part[k : k + batch_size] for k in range(0, len(part), batch_size)]
    shuffle = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[k] for k in shuffle]


def collate(
    examples: Sequence[Tokens],
    indices: Sequence[int],
    pad_id: int,
    *,
    row_weights: Sequence[float] | None = None,
    prompt_loss: float = 0.0,
    room: int = 0,
    earlier: bool = False,
    padding: bool = True,
) -> Batch:
    """Rows → one right-padded batch.

    Args:
        room: pad to a multiple of `MULTIPLE`, but to at most this many tokens. With few different lengths a CPU
            compiles its kernels once, not for each batch.
        row_weights: the weight of each row in the loss; None: 1.
        earlier: whether the assistant's earlier answers in a conversation count in the loss like the last one.
        prompt_loss: if above 0, the prompt's tokens count in the loss too, with this share of the answer's weight.
        padding: False adds the rows without padding.
    """
    rows = [examples[i] for i in indices]
    judged = {k: row for k, row in enumerate(rows) if isinstance(row, PreferenceTokens)}
    if judged:
        rows, unrelated = joined(rows)
        batch = _collated(rows, indices, pad_id, row_weights, 0.0, room, False, padding)
        beside = _collated(unrelated, (), pad_id, None, 0.0, room, False, padding) if unrelated else None
        return replace(batch, judged=judged, beside=beside)
    return _collated(rows, indices, pad_id, row_weights, prompt_loss, room, earlier, padding)


def _collated(
    rows: Sequence[Tokens],
    indices: Sequence[int],
    pad_id: int,
    row_weights: Sequence[float] | None,
    prompt_loss: float,
    room: int,
    earlier: bool,
    padding: bool,
) -> Batch:
    """Ordinary rows as one batch; those behind the first `len(indices)` weigh 1."""
    tasks = tuple(row.task for row in rows)
    tasks = tasks if any(tasks) else ()
    length = max(2 if tasks else 0, *map(len, rows))
    length = max(length, min(-(-length // MULTIPLE) * MULTIPLE, room))
    shape = (len(rows), length)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for row, example in enumerate(rows):
        start, end = len(example.prompt), len(example)
        input_ids[row, :end] = torch.tensor(example.ids)
        mask[row, :end] = 1
        if example.task:
            labels[row, 1 : 1 + len(example.answer)] = torch.tensor(example.answer, dtype=torch.long)
        elif example.hidden:
            # One column later: a causal model has the next token there, and the label of a position is read there.
            labels[row, torch.tensor(example.hidden) + 1] = torch.tensor(example.answer)
        else:
            labels[row, start:end] = torch.tensor(example.answer)
            for first, behind in example.earlier if earlier else ():
                labels[row, max(1, first) : behind] = input_ids[row, max(1, first) : behind]
    joined_rows = None if padding else unpadded([row.ids for row in rows], pad_id)
    if row_weights is None and not prompt_loss:
        return Batch(input_ids, mask, labels, tuple(indices), tasks=tasks, unpadded=joined_rows)
    weights = torch.ones(shape)
    for row, example in enumerate(rows):
        start, count = len(example.prompt), len(example.answer)
        if prompt_loss and start > 1 and not (example.task or example.hidden):
            asked = labels[row, :start] == IGNORED
            asked[0] = False
            labels[row, :start][asked] = input_ids[row, :start][asked]
            weights[row, :start][asked] = prompt_loss * count / max(1, int(asked.sum()))
        if row_weights is not None and row < len(row_weights):
            weights[row] *= row_weights[row]
    return Batch(input_ids, mask, labels, tuple(indices), weights, tasks, joined_rows)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches for evaluation: longest first (so that running out of memory shows at once), no shuffling."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[k : k + batch_size] for k in range(0, len(order), batch_size)]


def answers_in(examples: Sequence[Tokens], indices: Sequence[int]) -> int:
    """Number of tokens that count in the loss."""
    return sum(len(examples[i].answer) + sum(b - max(1, a) for a, b in examples[i].earlier) for i in indices)


def to_left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Any]:
    """Prompts in the form that `generate` needs: `input_ids` and `attention_mask`, `[rows, length]`, left-padded."""
    return _padded(prompts, pad_id, [max(map(len, prompts)) - len(prompt) for prompt in prompts])


def to_right_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Any]:
    """The same, right-padded."""
    return _padded(prompts, pad_id, [0] * len(prompts))


def _padded(prompts: Sequence[Sequence[int]], pad_id: int, starts: Sequence[int]) -> dict[str, Any]:
    input_ids = torch.full((len(prompts), max(map(len, prompts))), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        input_ids[row, start : start + len(prompt)] = torch.tensor(list(prompt))
        mask[row, start : start + len(prompt)] = 1
    return {"input_ids": input_ids, "attention_mask": mask}
