"""Causal language modelling: next-token loss on the answer, choice by likelihood, free answers by generation.

The vocabulary projection runs at answer positions only: on a base with 150,000 tokens and a one-word answer that
is most of the memory and much of the time of a stock step. Use it for every decoder-only base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from adapterhub_cl.data.batches import Batch, by_length, to_left_padded
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.objectives._choices import LabelTree, score_choices
from adapterhub_cl.objectives._projection import at_positions
from adapterhub_cl.objectives._scored import Scored, evaluating
from adapterhub_cl.types import Example, Task


class Objective(Scored):
    """Next-token prediction on a decoder-only base."""

    task_type = "CAUSAL_LM"
    answers_with = ("choice", "generation", "text")

    def tokeniser(self, tokenizer: Any, task: Task, max_length: int) -> Tokeniser:
        return Tokeniser(tokenizer, task, max_length)

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        with at_positions(model, *batch.places):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        found: torch.Tensor = logits[0].float()
        return found

    @torch.no_grad()
    def predict(
        self,
        model: Any,
        tokenizer: Any,
        task: Task,
        examples: Sequence[Example],
        *,
        max_length: int = 512,
        batch_size: int = 32,
        max_new_tokens: int = 64,
        progress: Callable[[int], None] | None = None,
        **generation: Any,
    ) -> list[tuple[str, float, dict[str, float]]]:
        """Answers, in the examples' order.

        Args:
            model: the base with the adapter active.
            task: a choice task is answered with one of its labels, any other by generation.
            max_length: inputs are cut so that prompt and answer fit into this many tokens.
            max_new_tokens: longest free answer, in tokens; three quarters of `max_length` at most.
            progress: called with the number of examples done after each batch.
            generation: passed to transformers' `generate` (temperature, do_sample, …).
        """
        choosing = task.kind == "choice"
        tree: LabelTree | None = None
        if choosing:
            encode = Tokeniser(tokenizer, task, max_length)
            tree = LabelTree({label: encode.answer(label) for label in task.labels})
        max_new_tokens = max(1, min(max_new_tokens, max_length * 3 // 4))
        reserved = tree.depth if tree else max_new_tokens
        encode = Tokeniser(tokenizer, task, max(1, max_length - reserved))
        asked = Task(**{**task.__dict__, "kind": "generation"}) if task.kind == "text" else task
        encode.task = asked
        prompts = [encode(Example(e.input or e.answer or "", None, e.instruction)).prompt for e in examples]
        found: list[tuple[str, float, dict[str, float]]] = [("", 0.0, {})] * len(examples)
        with evaluating(model):
            for indices in by_length([len(p) for p in prompts], batch_size):
                chosen = [prompts[i] for i in indices]
                if tree:
                    answers = _choose(model, tree, chosen, tokenizer.pad_token_id)
                else:
                    answers = _generate(model, tokenizer, chosen, max_new_tokens, generation)
                for index, answer in zip(indices, answers, strict=True):
                    found[index] = answer
                if progress:
                    progress(len(indices))
        return found


def _choose(
    model: Any, tree: LabelTree, prompts: Sequence[Sequence[int]], pad_id: int
) -> list[tuple[str, float, dict[str, float]]]:
    scores = score_choices(model, tree, prompts, pad_id).softmax(-1)
    answers = []
    for row in scores.tolist():
        best = max(range(len(row)), key=row.__getitem__)
        answers.append((tree.labels[best], row[best], dict(zip(tree.labels, row, strict=True))))
    return answers


def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, options: dict[str, Any]
) -> list[tuple[str, float, dict[str, float]]]:
    inputs = to_left_padded(prompts, tokenizer.pad_token_id)
    length = inputs["input_ids"].shape[1]
    output = model.generate(
        **{key: value.to(model.device) for key, value in inputs.items()},
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    written = output.sequences[:, length:]
    logs = torch.stack(output.logits, dim=1).float().log_softmax(-1).gather(-1, written[..., None])[..., 0]
    answers: list[tuple[str, float, dict[str, float]]] = []
    for ids, log in zip(written.tolist(), logs.tolist(), strict=True):
        end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
        text = tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        answers.append((text, math.exp(sum(log[:end]) / max(1, end)), {}))
    return answers
