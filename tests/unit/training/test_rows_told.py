"""What is told of the rows that a run learns."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.training.training_rows import _unlearned_answers
from adapterhub_cl.types import Example, Task


def conversation(*, weight: int = 1) -> Example:
    said = [("user", "Hello."), ("assistant", "Hi!"), ("user", "Why?"), ("assistant", "So."), ("user", "How?")]
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in said]
    messages[1]["weight"] = weight
    return Example.conversation([*messages, {"role": "assistant", "content": "Thus."}])


@pytest.mark.parametrize(
    ("form", "row", "weight", "told"),
    [
        ("chat", Tokens((1, 2), (3,), earlier=((0, 1), (1, 2))), 1, ""),
        (
            "chat",
            Tokens((1, 2), (3,), True, earlier=((0, 1),)),
            1,
            "1 earlier answer of the assistant is not learned, because the oldest turns",
        ),
        ("chat", Tokens((1, 2), (3,), True), 0, "1 earlier answer of"),
        (
            "instruction",
            Tokens((1, 2), (3,)),
            1,
            "2 earlier answers of the assistant are not learned, because the prompt format 'instruction'",
        ),
        ("instruction", Tokens((1, 2), ()), 1, ""),
    ],
)
def test_answers_in_conversations_that_are_not_learned(form: str, row: Tokens, weight: int, told: str) -> None:
    encode: Any = SimpleNamespace(task=Task("t", "generation", prompt_format=form))
    found = _unlearned_answers([(conversation(weight=weight), row), (Example("one", "text"), row)], encode)
    assert bool(found) == bool(told)
    if told:
        assert re.search(told, found)
