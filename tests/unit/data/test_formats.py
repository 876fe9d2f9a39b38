"""Prompt formats: what is written, to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.data.formats import FORMATS, Prompt, check_format, render
from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.types import Example

FULL, BARE = Example("in", "out", "do"), Example("in", "out")
ALPACA = "Read the instruction and write the response that fulfils it.\n\n"


@pytest.mark.parametrize(
    ("prompt_format", "example", "text", "prefix"),
    [
        ("instruction", FULL, "do\nin\nAnswer:", " "),
        ("instruction", BARE, "in\nAnswer:", " "),
        ("plain", FULL, "do\nin\n", ""),
        ("plain", BARE, "in\n", ""),
        ("alpaca", FULL, ALPACA + "### Instruction:\ndo\n\n### Input:\nin\n\n### Response:\n", ""),
        ("alpaca", BARE, ALPACA + "### Input:\nin\n\n### Response:\n", ""),
        ("Q: {input}\nA:", FULL, "Q: in\nA:", " "),
        (r"{instruction}\n{input} =>\n", BARE, "in =>\n", ""),
        ("{instruction} | {input}", BARE, " | in", " "),
        ('{"q": "{input}"}', FULL, '{"q": "in"}', " "),
    ],
)
def test_written_prompts(prompt_format: str, example: Example, text: str, prefix: str) -> None:
    prompt = render(prompt_format, example)
    assert prompt == Prompt(text, prefix, add_special_tokens=True)
    assert prompt.full("out") == text + prefix + "out"


def test_raw_text_has_no_prompt() -> None:
    assert render("instruction", Example("", "a text")) == Prompt("", "")


def test_chat_uses_the_template_of_the_tokenizer() -> None:
    prompt = render("chat", FULL, lambda turns: f"<{turns[0]['role']}>{turns[0]['content']}<assistant>")
    assert prompt == Prompt("<user>do\nin<assistant>", "", add_special_tokens=False)
    with pytest.raises(UsageError, match="needs a base whose tokenizer has a chat template") as caught:
        render("chat", FULL)
    assert "instruction" in caught.value.hint


def test_formats_that_cannot_be_used() -> None:
    with pytest.raises(UnknownNameError, match="alpacca") as unknown:
        check_format("alpacca")
    assert "did you mean alpaca" in unknown.value.hint
    with pytest.raises(UsageError, match=r"has no \{input\}"):
        check_format("Text: {instruction}")
    with pytest.raises(UsageError, match=r"has \{inptu\}") as misspelt:
        check_format("Q: {inptu}")
    assert misspelt.value.hint == "write {input}"
    assert check_format(r"{input}\nAnswer:") == "{input}\nAnswer:"


@given(st.text(min_size=1), st.text(), st.sampled_from([*FORMATS, "<{input}> {instruction}!"]))
def test_data_is_never_taken_for_a_template(text: str, instruction: str, prompt_format: str) -> None:
    """Braces, backslashes and placeholders in the data stand in the prompt as they are."""
    plain = render(prompt_format, Example("\ue000", None, "\ue001" if instruction else "")).text
    expected = "".join({"\ue000": text, "\ue001": instruction}.get(c, c) for c in plain)
    assert render(prompt_format, Example(text, None, instruction)).text == expected
