"""Causal language modelling: next-token loss on the answer, choice by likelihood, free answers by generation.

The vocabulary projection runs at answer positions only: on a base with 150,000 tokens and a one-word answer that
is most of the memory and much of the time of a stock step. Use it for every decoder-only base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from adapterhub_cl.answering import evaluating
from adapterhub_cl.answering.choices import LabelTree, score_choices
from adapterhub_cl.answering.projection import at_positions
from adapterhub_cl.data.batches import Batch, by_length, to_left_padded
from adapterhub_cl.data.chat import end_ids
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.objectives import Answer
from adapterhub_cl.objectives._scored import Scored
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
        max_new_tokens: int | None = None,
        progress: Callable[[int], None] | None = None,
        **generation: Any,
    ) -> list[Answer]:
        """Answers, in the examples' order.

        Args:
            model: the base with the adapter active.
            task: a choice task is answered with one of its labels, any other by generation.
            max_length: the base's context in tokens; the task's own limit says where inputs are cut.
            max_new_tokens: longest free answer, in tokens; None: what the task's answers need. Three quarters of
                `max_length` at most.
            progress: called with the number of examples done after each batch.
            generation: passed to transformers' `generate` (temperature, do_sample, …).
        """
        choosing = task.kind == "choice"
        encode = Tokeniser(tokenizer, replace(task, kind="generation") if task.kind == "text" else task, max_length)
        tree = LabelTree({label: encode.answer(label) for label in task.labels}) if choosing else None
        budget = max(1, min(encode.budget() if max_new_tokens is None else max_new_tokens, max_length * 3 // 4))
        encode.reserve = budget
        asked = [encode.prompt(example.question()) for example in examples]
        ends = end_ids(tokenizer, model)
        found: list[Answer] = [Answer("", 0.0, {})] * len(examples)
        with evaluating(model):
            for indices in by_length([len(one.prompt) for one in asked], batch_size):
                prompts = [asked[i].prompt for i in indices]
                if tree:
                    answers = _choose(model, tree, prompts, tokenizer.pad_token_id)
                else:
                    room = min(budget, max(1, max_length - max(map(len, prompts))))
                    answers = _generate(model, encode, prompts, room, ends, generation)
                for index, answer in zip(indices, answers, strict=True):
                    found[index] = answer._replace(truncated=asked[index].truncated)
                if progress:
                    progress(len(indices))
        return found


def _choose(model: Any, tree: LabelTree, prompts: Sequence[Sequence[int]], pad_id: int) -> list[Answer]:
    scores = score_choices(model, tree, prompts, pad_id).softmax(-1)
    answers = []
    for row in scores.tolist():
        best = max(range(len(row)), key=row.__getitem__)
        answers.append(Answer(tree.labels[best], row[best], dict(zip(tree.labels, row, strict=True))))
    return answers


def _generate(
    model: Any,
    encode: Tokeniser,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Sequence[int],
    options: dict[str, Any],
) -> list[Answer]:
    tokenizer = encode.tokenizer
    inputs = to_left_padded(prompts, tokenizer.pad_token_id)
    length = inputs["input_ids"].shape[1]
    output = model.generate(
        **{key: value.to(model.device) for key, value in inputs.items()},
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=list(ends),
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    written = output.sequences[:, length:]
    logs = torch.stack(output.logits, dim=1).float().log_softmax(-1).gather(-1, written[..., None])[..., 0]
    answers: list[Answer] = []
    for ids, log in zip(written.tolist(), logs.tolist(), strict=True):
        end = next((k + 1 for k, token in enumerate(ids) if token in ends), len(ids))
        text = encode.written(tokenizer.decode(ids[:end], skip_special_tokens=True))
        finished = bool(ids) and ids[end - 1] in ends
        answers.append(Answer(text, math.exp(sum(log[:end]) / max(1, end)), {}, finished=finished))
    return answers
