"""Answers inputs of one task with one adapter, or continues a text as it stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.formats import render
from adapterhub_cl.data.values import whole_characters
from adapterhub_cl.errors import AdapterError, DataError
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.types import Example, Prediction, Task


def answer(
    model: Any,
    base: LoadedBase,
    objective: BaseObjective,
    task: Task,
    inputs: Sequence[Example],
    adapter: str,
    *,
    max_new_tokens: int = 64,
    max_length: int | None = None,
    progress: Any = None,
    **generation: Any,
) -> list[Prediction]:
    """One prediction for each input, in order.

    Args:
        adapter: the name to report as the one that answered.
        generation: passed to transformers' `generate` for free answers.

    Raises:
        DataError: an input is empty.
    """
    for number, example in enumerate(inputs, 1):
        if not example.input.strip() and not example.instruction.strip():
            raise DataError(f"input {number} is empty", "give a text")
    with base.autocast():
        found = objective.predict(
            model,
            base.tokenizer,
            task,
            inputs,
            max_length=min(max_length or base.context, base.context),
            max_new_tokens=max_new_tokens,
            progress=progress,
            **generation,
        )
    if any(not math.isfinite(confidence) for _, confidence, _ in found):
        raise AdapterError(
            f"{adapter} gives no finite scores",
            "its weights have diverged: train it again with a lower --learning-rate",
        )
    return [
        Prediction(example.input or example.instruction, adapter, text, confidence, scores)
        for example, (text, confidence, scores) in zip(inputs, found, strict=True)
    ]


def continue_text(
    model: Any,
    base: LoadedBase,
    text: str,
    *,
    task: Task | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    streamer: Any = None,
) -> str:
    """What the model writes after a text.

    Args:
        task: applies its prompt format first; None continues the text as it is.
        temperature: 0 takes the likeliest token each time.
        streamer: a transformers streamer that receives the tokens as they come.

    Raises:
        DataError: the text is empty or longer than the base's context.
    """
    if not text.strip():
        raise DataError("the text is empty", "give a text to go on from")
    text = whole_characters(text)
    prompt, special = text, True
    if task is not None and task.kind != "text":
        chat = base.tokenizer.apply_chat_template
        rendered = render(
            task.prompt_format,
            Example(text, None, task.instruction),
            lambda messages: str(chat(messages, tokenize=False, add_generation_prompt=True)),
        )
        prompt, special = rendered.text, rendered.add_special_tokens
    inputs = base.tokenizer(prompt, return_tensors="pt", add_special_tokens=special).to(base.device)
    length = int(inputs["input_ids"].shape[1])
    if length + max_new_tokens > base.context:
        raise DataError(
            f"the text has {length} tokens; with {max_new_tokens} new ones that is over the base's {base.context}",
            "shorten the text or lower --max-new-tokens",
        )
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.no_grad(), base.autocast():
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=base.tokenizer.pad_token_id,
            eos_token_id=base.tokenizer.eos_token_id,
            streamer=streamer,
            **sampling,
        )
    return str(base.tokenizer.decode(output[0, length:], skip_special_tokens=True))
