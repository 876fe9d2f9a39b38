"""Generation: the base reads three examples with the same answer and writes a fourth (after LAMBADA, Anaby-Tavor et
al. 2020, and GPT3Mix, Yoo et al. 2021); the answer is kept.

Choose it for choice tasks with few examples and a base that writes well. Each copy costs one generation, and a weak
base writes texts that do not fit the answer. Answers that occur only once (free answers) are skipped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from adapterhub_cl.augmentation import BaseAugmentation, Writer
from adapterhub_cl.types import Example

SHOTS = 3
MIN_WORDS = 3


class Augmentation(BaseAugmentation):
    """Few-shot prompts for one answer, continued by the base up to the end of the line."""

    needs_base: ClassVar[bool] = True

    def vary(self, example: Example, generator: random.Random) -> str | None:
        """None: this method cannot vary a single example."""
        return None

    def write(self, examples: Sequence[Example], count: int, generator: random.Random, writer: Writer) -> list[Example]:
        groups: dict[tuple[str, str], list[str]] = {}
        for example in examples:
            if example.input and example.answer:
                groups.setdefault((example.instruction, example.answer), []).append(" ".join(example.input.split()))
        groups = {key: texts for key, texts in groups.items() if len(texts) > 1}
        if not groups or count < 1:
            return []
        chosen = generator.choices(list(groups), [len(texts) for texts in groups.values()], k=count)
        prompts = [prompt(generator.sample(groups[key], min(SHOTS, len(groups[key])))) for key in chosen]
        written = [first_line(text) for text in writer(prompts, generator.getrandbits(31))]
        return [
            Example(text, answer, instruction)
            for (instruction, answer), text in zip(chosen, written, strict=True)
            if len(text.split()) >= MIN_WORDS
        ]


def prompt(texts: Sequence[str]) -> str:
    """The texts, one a line, and the start of the next line."""
    return "".join(f"Text: {text}\n" for text in texts) + "Text:"


def first_line(text: str) -> str:
    """The generated text up to the first line break, without surrounding spaces."""
    return text.lstrip(" \t").partition("\n")[0].strip()
