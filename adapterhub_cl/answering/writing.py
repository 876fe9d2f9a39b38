"""Writes text token by token, each row with its own settings (temperature, seed, limit, stop strings, streaming).

A base whose KV cache can be cut into rows is written by a loop of our own, which rows leave as soon as they are done:
see `decoding`. The others (recurrent states, sliding windows, …) are written by transformers' `generate`, whose two
hooks do what differs from row to row. Nothing else calls `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
)

from adapterhub_cl.answering import Answer, evaluating
from adapterhub_cl.answering.decoding import Decoder, can_decode
from adapterhub_cl.answering.rope_sides import sides
from adapterhub_cl.answering.written import Writing, WrittenRow, take_tokens
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.batches import to_left_padded
from adapterhub_cl.data.chat import end_ids
from adapterhub_cl.data.formats import Frame
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.progress import Reporter
from adapterhub_cl.types import Task

__all__ = ["Apply", "Writing", "base_writer", "drawn", "seeds_of", "write_rows"]

ROWS, LONGEST, TOP_K = 16, 64, 50  # of `base_writer`: rows at once, tokens a text, likeliest tokens to draw from
Apply = Callable[[Sequence[Mapping[str, float]]], AbstractContextManager[Any]]


@torch.no_grad()
def write_rows(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Writing],
    *,
    frames: Sequence[Frame | None] | None = None,
    emit: Sequence[Callable[[str], bool] | None] | None = None,
    halt: Callable[[], bool] = lambda: False,
    top_k: int = 0,
    mixtures: Sequence[Mapping[str, float]] | None = None,
    apply: Apply | None = None,
) -> list[Answer]:
    """Written answers to prompts, in order; `finished`: it ended by itself or at a stop string.

    Args:
        model: the base's model, with the adapter active that answers all rows, or any of them with `apply`.
        frames: for each row what its prompt format writes around the answer: it is removed, as are blank lines and
            spaces around the answer. None: the text stays as it was written.
        emit: for each row None, or a function that receives the text piece by piece and returns whether to go on.
        halt: called before each token; True ends all answers where they are.
        top_k: draw from this many of the likeliest tokens; 0: from all.
        mixtures: for each row the adapters that answer it; only with `apply`.
        apply: gives a context in which the model answers row k with the k-th of some mixtures; see `Adapters.rows`.
    """
    ends = end_ids(tokenizer, model)
    nothing: list[Any] = [None] * len(prompts)
    given = (prompts, rows, frames or nothing, emit or nothing, mixtures or [{}] * len(prompts))
    written = [WrittenRow(tokenizer, set(ends), *each) for each in zip(*given, strict=True)]
    _write(model, tokenizer.pad_token_id, ends, written, halt, top_k, apply or (lambda _: nullcontext(model)))
    return [row.finish() for row in written]


@torch.no_grad()
def drawn(
    model: Any, pad_id: int, prompts: Sequence[Sequence[int]], ends: Sequence[int], longest: int, seed: int
) -> list[list[int]]:
    """Token ids that a model writes after prompts, drawn from its whole distribution; each with the id that ended it.

    Args:
        ends: ids that end an answer.
        longest: tokens at most.
    """
    own = seeds_of(seed, len(prompts))
    rows = [
        WrittenRow(None, set(ends), ids, Writing(longest, 1.0, seed=k)) for ids, k in zip(prompts, own, strict=True)
    ]
    with evaluating(model):
        _write(model, pad_id, sorted(set(ends)), rows, lambda: False, 0, lambda _: nullcontext(model))
    return [row.ids for row in rows]


def _write(
    model: Any,
    pad_id: int,
    ends: Sequence[int],
    rows: Sequence[WrittenRow],
    halt: Callable[[], bool],
    top_k: int,
    apply: Apply,
) -> None:
    if can_decode(model):
        with Decoder(model, apply, pad_id, ends, top_k=top_k, stay=True) as decoder:
            decoder.join(rows)
            while decoder.rows and not halt():
                decoder.step()
        return
    for part in sides(model, [len(row.prompt) for row in rows]):
        some = [rows[k] for k in part]
        with apply([row.mixture for row in some]) as changed:
            _generate(changed, pad_id, ends, some, halt, top_k)


def _generate(
    model: Any, pad_id: int, ends: Sequence[int], rows: Sequence[WrittenRow], halt: Callable[[], bool], top_k: int
) -> None:
    """Write rows with transformers' `generate`: all of them are computed until the last one is done."""
    inputs = to_left_padded([row.prompt for row in rows], pad_id)
    cut = [TopKLogitsWarper(top_k)] if top_k else []
    model.generate(
        **{key: value.to(model.device) for key, value in inputs.items()},
        max_new_tokens=max(row.limit for row in rows),
        pad_token_id=pad_id,
        eos_token_id=ends,
        do_sample=False,
        logits_processor=LogitsProcessorList([*cut, _Draw(rows)]),
        stopping_criteria=StoppingCriteriaList([_Stop(rows, halt)]),
    )


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Chooses each row's next token and makes it the only possible one."""

    def __init__(self, rows: Sequence[WrittenRow]) -> None:
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = take_tokens(scores, self.rows)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Tells `generate` which rows are done."""

    def __init__(self, rows: Sequence[WrittenRow], halt: Callable[[], bool]) -> None:
        self.rows, self.halt = rows, halt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        halted = self.halt()
        return torch.tensor([row.done or halted for row in self.rows], device=input_ids.device)


def seeds_of(seed: int, count: int) -> list[int]:
    """`count` different seeds that follow from one."""
    return torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


def base_writer(
    model: Any, base: LoadedBase, reporter: Reporter | None = None
) -> Callable[[Sequence[str], int], list[str]]:
    """A function (prompts, seed) → what the base writes after each, adapters switched off; same seed, same texts."""

    def write(prompts: Sequence[str], seed: int) -> list[str]:
        found: list[str] = []
        encode = Tokeniser(base.tokenizer, Task(""), base.context)
        rows = [Writing(LONGEST, 1.0, 0.9, own) for own in seeds_of(seed, len(prompts))]
        bar = (reporter or Reporter()).piece("writing examples", len(prompts))
        with evaluating(model), model.disable_adapter(), bar as advance:
            for k in range(0, len(prompts), ROWS):
                ids = [encode.start(text)[LONGEST - base.context :] for text in prompts[k : k + ROWS]]
                found += [one.text for one in write_rows(model, base.tokenizer, ids, rows[k : k + ROWS], top_k=TOP_K)]
                advance(len(ids))
        return found

    return write
