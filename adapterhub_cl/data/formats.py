"""Prompt formats: how an example is written for the base.

A format is a template with `{instruction}` and `{input}`, and the text between the prompt and the answer.
Users name one of `FORMATS`, or `chat` (the tokenizer's own template), or give their own template.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from adapterhub_cl.data.values import tidy
from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.examples import SYSTEM
from adapterhub_cl.types import Example

ApplyChat = Callable[[list[dict[str, Any]]], str]
PLACEHOLDERS = ("instruction", "input")


class Format(NamedTuple):
    """A template, and the text before the answer. A paragraph with an empty placeholder is left out."""

    template: str
    answer_prefix: str


FORMATS: Mapping[str, Format] = {
    "instruction": Format("{instruction}\n{input}\nAnswer:", " "),
    "plain": Format("{instruction}\n{input}\n", ""),
    "alpaca": Format(
        "Read the instruction and write the response that fulfils it.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        "",
    ),
}
NAMES = (*FORMATS, "chat")


@dataclass(frozen=True)
class Frame:
    """What a prompt format writes around an answer, and what is no part of it.

    Attributes:
        before: between the prompt and the answer.
        behind: after the answer, up to the token that ends it; without spaces around it.
    """

    before: str = ""
    behind: str = ""

    def inside(self, text: str) -> str:
        """What was written, without its frame and without blank lines and spaces around it."""
        return tidy(tidy(text.removeprefix(self.before)).removesuffix(self.behind))


@dataclass(frozen=True)
class Prompt:
    """A prompt as text, ready to be tokenised.

    Attributes:
        text: the prompt; empty for raw text.
        answer_prefix: the text between the prompt and the answer, which belongs to neither.
        add_special_tokens: whether the tokenizer has to add its own; False if the template wrote them.
    """

    text: str
    answer_prefix: str
    add_special_tokens: bool = True

    def full(self, answer: str) -> str:
        return f"{self.text}{self.answer_prefix}{answer}"


def is_template(prompt_format: str) -> bool:
    """Whether a format is a text of the user's own, and not the name of one."""
    return prompt_format not in NAMES


def check_format(prompt_format: str) -> str:
    r"""The format as it is stored: a known name, or a template in which a literal `\n` has become a line break.

    Raises:
        UnknownNameError: neither a known name nor a template.
        UsageError: a template without `{input}`, or with a misspelt placeholder.
    """
    if not is_template(prompt_format):
        return prompt_format
    if not re.search(r"[{}\s]", prompt_format):
        raise UnknownNameError("prompt format", prompt_format, NAMES, "or a template with {input}")
    for name in re.findall(r"\{(\w+)\}", prompt_format):
        near = difflib.get_close_matches(name, PLACEHOLDERS, n=1, cutoff=0.7)
        if name not in PLACEHOLDERS and near:
            raise UsageError(f"the prompt format has {{{name}}}", f"write {{{near[0]}}}")
    if "{input}" not in prompt_format:
        raise UsageError(
            f"the prompt format {prompt_format!r} has no {{input}}",
            f"put {{input}} where the text goes, or name one of: {', '.join(NAMES)}",
        )
    return prompt_format.replace("\\n", "\n")


def render(prompt_format: str, example: Example, apply_chat: ApplyChat | None = None, *, talks: bool = False) -> Prompt:
    """Write the prompt of an example. Its answer is ignored.

    An example with neither instruction nor input is raw text: its prompt is empty and the answer is the text.

    Args:
        prompt_format: a name or a template, see `check_format`.
        example: its instruction may be empty.
        apply_chat: for `chat`: messages → the prompt up to where the assistant begins.
        talks: whether the task was trained on conversations: see `messages`.

    Raises:
        UnknownNameError: no such format.
        UsageError: a template that cannot be used, or `chat` for a base without a chat template.
    """
    if not example.instruction and not example.input:
        return Prompt("", "")
    prompt_format = check_format(prompt_format)
    if prompt_format == "chat":
        if apply_chat is None:
            raise UsageError(
                "the prompt format 'chat' needs a base whose tokenizer has a chat template",
                f"choose another one: {', '.join(FORMATS)}",
            )
        return Prompt(apply_chat(messages(example, talks=talks)), "", add_special_tokens=False)
    template, prefix = _template(prompt_format)
    told = f"Tools: {example.tools}" if example.tools else ""
    instruction = "\n".join(part for part in (example.instruction, told) if part)
    return Prompt(_fill(template, {"instruction": instruction, "input": example.text}), prefix)


def answer_prefix(prompt_format: str) -> str:
    """The text between the prompt and the answer, which belongs to neither."""
    return "" if prompt_format == "chat" else _template(prompt_format)[1]


def messages(example: Example, *, talks: bool = False) -> list[dict[str, Any]]:
    """The messages with which a chat template asks an example.

    Args:
        talks: whether the instruction is the conversation's system message. Otherwise it is part of the user's
            message, as in tasks whose data are not conversations.
    """
    system = [{"role": "system", "content": example.instruction}] if example.instruction and talks else []
    if not example.turns:
        content = example.input if talks else "\n".join(part for part in (example.instruction, example.input) if part)
        return [*system, {"role": "user", "content": content}]
    said = [turn.message() for turn in example.turns]
    if said[0]["role"] in SYSTEM:
        return said
    if example.instruction and not talks and said[-1]["role"] == "user":
        said[-1] = {**said[-1], "content": f"{example.instruction}\n{said[-1]['content']}"}
    return [*system, *said]


def _template(prompt_format: str) -> Format:
    if prompt_format in FORMATS:
        return FORMATS[prompt_format]
    return Format(prompt_format, "" if prompt_format[-1].isspace() else " ")


def _fill(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        if not value:
            # a placeholder alone on its line is removed with the line, and with its heading if it has one
            template = re.sub(rf"(?m)(^###[^\n]*\n)?^\{{{name}\}}(\n+|\Z)", "", template)
    # one pass over the template, so that braces in the values are never interpreted
    return re.sub(r"\{(instruction|input)\}", lambda match: values[match[1]], template)
