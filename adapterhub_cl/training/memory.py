"""How much memory a run will need, and how it computes to fit into what there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from adapterhub_cl.bases.loading import LoadedBase, trim
from adapterhub_cl.data.batches import Batch, collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import UsageError
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.training.layer_stack import few_layers, stack_of
from adapterhub_cl.training.speed import Speed, step_seconds, use

SHARE_OF_FREE = 0.9
SPREAD = 1.15  # of glibc's allocator; measured on the 135M base with 0, 10 and 30 of 30 layers computed twice
MEASURED = (2, 4)  # layers
EVERY = (0, 3, 2, 1)  # which layers are computed again: none, every third, …


def give_back(device: torch.device) -> None:
    """Return freed memory that torch or the C library keeps, so that others, and larger pieces, can have it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        trim()


@dataclass(frozen=True)
class Needs:
    """What a step of the longest rows needs, in bytes.

    Attributes:
        resident: taken whatever the batch: libraries and what they keep, weights, adapter.
        states: of the optimiser, and gradients.
        layer: what one layer keeps for the backward pass, for a whole batch.
        entry: the input of a layer, for a whole batch.
        rest: what is kept outside the layers, for a whole batch: embeddings, logits.
        layers: how many there are.
        batch: rows of a batch.
        spread: how much more a batch takes than its tensors, where the allocator leaves gaps.
    """

    resident: int
    states: int
    layer: int
    entry: int
    rest: int
    layers: int
    batch: int
    spread: float = 1.0

    def peak(self, rows: int, every: int) -> int:
        """The most that is taken at once.

        Args:
            rows: in memory at once.
            every: every how many layers one is computed again; 0: none.
        """
        again = len(range(0, self.layers, every)) if every else 0
        kept = (self.layers - again) * self.layer + again * self.entry + self.rest
        # The layer in work has its gradients beside it; one that is computed again also has all that it would have
        # kept, and what is left of the one before.
        working = self.layer * (3 if again else 1) + self.rest // 2
        return self.resident + self.states + int(self.spread * (kept + working) * rows / max(1, self.batch))


def needs(
    model: Any, base: LoadedBase, objective: BaseObjective, tokens: Sequence[Tokens], batch: int, way: Speed
) -> Needs:
    """Measured on a batch of the longest rows in a forward pass of a few layers, and on one row in a whole step.

    Args:
        model: the base with a trainable LoRA, computing as in the run.
        batch: rows in memory at once, at most.
    """
    order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))[:batch]
    rows = collate(tokens, order, base.tokenizer.pad_token_id, padding=way.padding).to(base.device)
    give_back(base.device)
    inner = model.get_base_model()
    stack = stack_of(inner)
    count = len(stack[2]) if stack else 0
    few, more = (min(size, count) for size in MEASURED)
    kept = {}
    for size in sorted({few, more}):
        with few_layers(inner, size), use(model, way), torch.random.fork_rng():
            kept[size] = _kept(model, objective, rows, base)
    layer = (kept[more] - kept[few]) // (more - few) if more > few else kept[few] // max(1, few)
    computed = rows.input_ids if rows.unpadded is None else rows.unpadded.input_ids
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = Needs(
        resident=0,
        states=trained * 4 * 3,
        layer=layer,
        entry=computed.numel() * base.width * base.dtype.itemsize,
        rest=max(0, kept[few] - few * layer),
        layers=count,
        batch=len(order),
        spread=SPREAD if base.device.type == "cpu" else 1.0,
    )
    one = collate(tokens, order[:1], base.tokenizer.pad_token_id, padding=way.padding).to(base.device)
    give_back(base.device)  # what the passes above left with the allocator would count as resident
    peak = Peak(base.device)
    with torch.random.fork_rng():
        step_seconds(model, objective, one, way, base)
    taken = peak.bytes()
    give_back(base.device)
    return replace(found, resident=max(0, taken - found.peak(1, 0) + found.states))


def _kept(model: Any, objective: BaseObjective, batch: Batch, base: LoadedBase) -> int:
    """Bytes that autograd keeps for the backward pass, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen: dict[int, torch.UntypedStorage] = {}

    # The graph holds this function, so what it returns or keeps must not hold the graph: that would never be freed.
    def look(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage  # kept, else its address could be another tensor's next

    def never(_: None) -> torch.Tensor:
        raise AssertionError("there is no backward pass")

    with torch.autograd.graph.saved_tensors_hooks(look, never), base.autocast():
        objective.losses(model, batch)
    found = sum(storage.nbytes() for storage in seen.values())
    seen.clear()
    return found


def fitted(
    model: Any,
    base: LoadedBase,
    objective: BaseObjective,
    tokens: Sequence[Tokens],
    settings: TrainingSettings,
    way: Speed,
) -> tuple[Speed, int]:
    """The way to compute that fits into memory, and the bytes that it needs at its peak.

    What does not fit computes layers again in the backward pass, first every third, at last all; then it takes fewer
    rows at a time. The step and its result stay the same.

    Raises:
        UsageError: `--memory` is too small for one row, or layers are to be computed again of a base whose layers
            cannot be told apart.
    """
    found = needs(model, base, objective, tokens, settings.batch, way)
    cap = settings.memory_bytes()
    room = min(found.resident + int(SHARE_OF_FREE * free(base.device)), cap or 1 << 62)
    asked = settings.checkpointing
    if asked not in ("auto", "off") and not found.layers:
        raise UsageError(
            f"--checkpointing {asked}: no layers were found in this base ({base.info.architecture})",
            "--checkpointing off, and a smaller --batch-size if memory is short",
        )
    if asked not in ("auto", "off") and int(asked) > found.layers:
        raise UsageError(
            f"--checkpointing {asked} is more than the {found.layers} layers of this base",
            f"--checkpointing 1 (all of them) to {found.layers}; or auto",
        )
    tried = EVERY if found.layers else (0,)
    choices = tried if asked == "auto" else (0,) if asked == "off" else (int(asked),)
    rows = found.batch
    while True:
        for every in choices:
            if (peak := found.peak(rows, every)) <= room:
                return replace(way, every=every, rows=rows if rows < found.batch else 0), peak
        if rows == 1:
            break
        rows = max(1, rows // 2)
    every = choices[-1]
    peak = found.peak(1, every)
    if cap:
        less = "" if found.resident > cap else ", or a lower --max-length or --rank"
        raise UsageError(
            f"--memory {settings.memory} is too small: one row at a time needs {peak / 1e6:,.0f} MB, of which the base "
            f"and the libraries take {found.resident / 1e6:,.0f} MB",
            f"--memory {math.ceil(1.1 * peak / 1e6)}MB, or a smaller base{less}",
        )
    return replace(way, every=every, rows=1), peak


def free(device: torch.device) -> int:
    """Bytes that can still be had."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    return int(psutil.virtual_memory().available)


class Peak:
    """The most memory that was held since this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):  # Linux only; elsewhere the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        with suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
        return int(psutil.Process().memory_info().rss)
