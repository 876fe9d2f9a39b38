"""Lets the bare base write: for augmentation by generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from adapterhub_cl.answering import evaluating
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.batches import to_left_padded
from adapterhub_cl.data.chat import end_ids
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.progress import Reporter
from adapterhub_cl.types import Task

ROWS, LONGEST = 16, 64


def base_writer(
    model: Any, base: LoadedBase, reporter: Reporter | None = None
) -> Callable[[Sequence[str], int], list[str]]:
    """A function (prompts, seed) → what the base writes after each, adapters switched off; same seed, same texts."""

    @torch.no_grad()
    def write(prompts: Sequence[str], seed: int) -> list[str]:
        found: list[str] = []
        bar = (reporter or Reporter()).piece("writing examples", len(prompts))
        with torch.random.fork_rng(), evaluating(model), model.disable_adapter(), bar as advance:
            torch.manual_seed(seed)
            encode = Tokeniser(base.tokenizer, Task(""), base.context)
            for k in range(0, len(prompts), ROWS):
                room = base.context - LONGEST
                ids = [encode.start(text)[-room:] for text in prompts[k : k + ROWS]]
                inputs = to_left_padded(ids, base.tokenizer.pad_token_id)
                written = model.generate(
                    **{name: value.to(model.device) for name, value in inputs.items()},
                    max_new_tokens=LONGEST,
                    do_sample=True,
                    top_p=0.9,
                    pad_token_id=base.tokenizer.pad_token_id,
                    eos_token_id=end_ids(base.tokenizer, model),
                )
                length = inputs["input_ids"].shape[1]
                found += base.tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
                advance(len(ids))
        return found

    return write
