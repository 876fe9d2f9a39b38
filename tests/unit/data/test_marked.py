"""A row with what is learned of it marked."""

from __future__ import annotations

from typing import Any

import pytest
from cl_adapter import display
from pico import make_tokenizer

from adapterhub_cl.data.marked import Part, marked
from adapterhub_cl.data.tokenise import Tokeniser, Tokens
from adapterhub_cl.types import Example, Task, Turn


@pytest.fixture(scope="module")
def tokenizer(_torch: Any) -> Any:
    return make_tokenizer()


def test_the_answer_and_the_end_of_its_turn_are_learned(tokenizer: Any) -> None:
    task = Task("t", "choice", "chat", labels=("good", "bad"))
    encode = Tokeniser(tokenizer, task, 64)
    tokens = encode(Example("a film", "good"))
    before, answer = marked(tokenizer, task, tokens)
    assert (before.learned, answer.learned) == (False, True)
    assert before.text == tokenizer.decode(tokens.prompt)
    assert answer.text.startswith("good")
    assert answer.text == f"good{tokenizer.decode([encode.end])}"


def test_every_answer_of_a_conversation_is_marked(tokenizer: Any) -> None:
    tokens = Tokens((1, 50, 51, 52, 53, 54, 55), (60, 2), earlier=((2, 4),))
    found = marked(tokenizer, Task("t", "generation", "chat"), tokens)
    assert [part.learned for part in found] == [False, True, False, True]
    assert "".join(part.text for part in found) == "".join(
        tokenizer.decode(ids) for ids in ([1, 50], [51, 52], [53, 54, 55], [60, 2])
    )


def test_a_label_of_an_encoder_and_hidden_words(tokenizer: Any) -> None:
    task = Task("t", "choice", "instruction", labels=("good", "bad"))
    assert marked(tokenizer, task, Tokens((1, 50), (1,), task="t"))[-1] == Part("bad", True)
    found = marked(tokenizer, task, Tokens((1, 50, 51), (7,), hidden=(1,)))
    assert [part.learned for part in found] == [False, True, False]


def test_what_is_shown_is_safe_and_short() -> None:
    told = display.marked([Part("a\x1b[31m\nb" + "x" * 9000, False), Part("good", True)])
    assert "\x1b" not in told
    assert told.startswith("a�[31m\nb")
    assert told.endswith("⟦good⟧")
    assert len(told) < 4000


def test_turns_are_there(tokenizer: Any) -> None:
    turns = (Turn("user", "hello"), Turn("assistant", "good day"), Turn("user", "a film"))
    task = Task("t", "generation", "chat")
    tokens = Tokeniser(tokenizer, task, 128)(Example("a film", "fine", turns=turns))
    found = marked(tokenizer, task, tokens)
    assert "good day" in "".join(part.text for part in found)
    assert found[-1].learned
