"""Ours with one thing taken away at a time, and one added: what the speed comes from.

The library has no switches for this. The rows replace functions of its modules, in the script's own process and for as
long as it trains. The choice of attention is made before the time begins: these runs are short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional
from ways import Way, now, since, with_ours

from adapterhub_cl.adapters import fused as fused_layers
from adapterhub_cl.adapters import lora
from adapterhub_cl.bases.encoders import head_of
from adapterhub_cl.data import batches
from adapterhub_cl.data.batches import IGNORED, Batch
from adapterhub_cl.objectives import causal_lm
from adapterhub_cl.training.speed import Speed

LOOP, LEARN, SPEED, ROWS = (f"adapterhub_cl.training.{name}" for name in ("loop", "learn", "speed", "training_rows"))


@contextmanager
def peft_layers() -> Iterator[None]:
    """PEFT's own forward and backward in place of the fused ones."""

    @contextmanager
    def plain(*_: Any) -> Iterator[int]:
        yield 0

    with patch(f"{LEARN}.fused", plain), patch(f"{SPEED}.fused", plain), patch(f"{ROWS}.fused", plain):
        yield


@contextmanager
def random_batches() -> Iterator[None]:
    """Rows of any length in a batch, padded to the longest of it."""

    def plan(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, pool: int = 0) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(lengths), generator=generator).tolist()
        return [order[k : k + batch_size] for k in range(0, len(order), batch_size)]

    with patch(f"{LOOP}.plan_epoch", plan):
        yield


def padded_to(length: int) -> Any:
    """Every batch as long as the longest that is allowed (the choice of attention is still made on a real one)."""

    @contextmanager
    def padded() -> Iterator[None]:
        def collate(examples: Any, indices: Any, pad_id: int, **options: Any) -> Batch:
            batch = batches.collate(examples, indices, pad_id, **options)
            more = (0, length - batch.input_ids.shape[1])
            return Batch(
                functional.pad(batch.input_ids, more, value=pad_id),
                functional.pad(batch.attention_mask, more),
                functional.pad(batch.labels, more, value=IGNORED),
                batch.indices,
                tasks=batch.tasks,
            )

        with random_batches(), patch(f"{LOOP}.collate", collate):
            yield

    return padded


@contextmanager
def all_positions() -> Iterator[None]:
    """The vocabulary projection and the cross entropy at every position, as a stock loss computes them."""

    def logits(_: Any, model: Any, batch: Batch) -> torch.Tensor:
        found: torch.Tensor = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits.float()
        return found

    def losses_of(_: Any, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        wanted = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
        each = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
        return each.view_as(wanted)[batch.places]

    with patch.multiple(causal_lm.Objective, logits=logits, losses_of=losses_of):
        yield


@contextmanager
def own_dropout() -> Iterator[None]:
    """The base in training mode, as Trainer puts it: its own dropout is on."""

    def mode(model: Any) -> None:
        lora.training_mode(model)
        model.train()

    with patch(f"{LOOP}.training_mode", mode):
        yield


def compiled(rows: int, *, fused: bool) -> Any:
    """torch.compile of every layer of the base, for any shape.

    A few steps on made-up batches before the first real one make it compile; their seconds are counted apart.

    Args:
        rows: of a batch.
        fused: over the fused LoRA layers, or over PEFT's.
    """

    @contextmanager
    def compiling() -> Iterator[list[tuple[float, float]]]:
        spent: list[tuple[float, float]] = []

        @contextmanager
        def within(model: Any, dtype: torch.dtype, keep_bytes: int = 0) -> Iterator[int]:
            with fused_layers.fused(model, dtype, keep_bytes) if fused else nullcontext(0) as layers:
                count = model.config.get_text_config().num_hidden_layers
                stacks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
                started = now()
                lora.training_mode(model)  # as the loop does: another mode would be compiled anew
                for layer in stacks[0]:
                    layer.compile(dynamic=True)
                for length in (48, 64, 104):
                    _made_up_step(model, rows, length, dtype)
                spent.append(since(started))
                yield layers
                for layer in stacks[0]:
                    layer._compiled_call_impl = None

        with patch(f"{LEARN}.fused", within):
            yield spent

    return compiling


def _made_up_step(model: Any, rows: int, length: int, dtype: torch.dtype) -> None:
    ids = torch.randint(5, 500, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0  # a batch without padding would be compiled as one that never has any
    options = {"use_cache": False} if head_of(model) is None else {}  # a layer given a cache is another to compile
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(input_ids=ids, attention_mask=mask, **options).logits.float().square().mean()
    torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)


def ablations(encoder: bool, rows: int, length: int) -> dict[str, Way]:
    """The rows of the table, the first of them ours as it is.

    Args:
        rows: of a batch.
        length: the longest input, in tokens.
    """
    of = partial(with_ours, settled=True)
    only = {"own-dropout": Way("the base's own dropout on", of(changed=own_dropout))}
    if not encoder:
        unpadded = Speed("eager", padding=False)
        only = {
            "all-positions": Way("loss over the logits of all positions", of(changed=all_positions)),
            "unpadded": Way("eager attention, rows without padding forced", of(chosen=unpadded)),
        }
    return {
        "ours": Way("AdapterHub-CL, 16-bit base", of()),
        "fp32": Way("fp32 base and products", of(dtype="fp32")),
        "sdpa": Way("sdpa attention forced", of(chosen=Speed("sdpa"))),
        "eager": Way("eager attention forced", of(chosen=Speed("eager"))),
        "peft-layers": Way("PEFT's LoRA layers, not the fused ones", of(changed=peft_layers)),
        "random-batches": Way("random batches, padded to their longest", of(changed=random_batches)),
        "max-length": Way(f"random batches, padded to {length}", of(changed=padded_to(length))),
        **only,
        "recomputed": Way("every layer computed twice", of(chosen=Speed("eager", every=1))),
        "compiled": Way("added: torch.compile", of(changed=compiled(rows, fused=True))),
        "compiled-peft": Way("added: torch.compile, over PEFT's layers", of(changed=compiled(rows, fused=False))),
    }
