"""Prompts and answers as ids: what is cut, what never is, and where the answer begins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import make_tokenizer

from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import DataError
from adapterhub_cl.types import Example, Task

TASK = Task("mood", "choice", instruction="Is this good?", labels=("yes", "no"))
RAW = Task("facts", "text")
words = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=120)


def text_of(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def test_prompt_then_answer_then_end(tokenizer: Any) -> None:
    tokens = Tokeniser(tokenizer, TASK, 128)(Example("the red apple", "yes"))
    assert text_of(tokenizer, tokens.prompt) == "Is this good?\nthe red apple\nAnswer:"
    assert tokens.prompt[0] == tokenizer.bos_token_id
    assert tokens.prompt.count(tokenizer.bos_token_id) == 1
    assert text_of(tokenizer, tokens.answer) == " yes"
    assert tokens.answer[-1] == tokenizer.eos_token_id
    assert tokens.answer.count(tokenizer.eos_token_id) == 1
    assert tokenizer.bos_token_id not in tokens.answer
    assert len(tokens) == len(tokens.prompt) + len(tokens.answer)
    assert not tokens.truncated


def test_own_instruction_wins_over_the_task_s(tokenizer: Any) -> None:
    prompt = Tokeniser(tokenizer, TASK, 128)(Example("x", None, "Well?")).prompt
    assert text_of(tokenizer, prompt) == "Well?\nx\nAnswer:"


def test_without_an_answer_there_is_only_the_prompt(tokenizer: Any) -> None:
    encode = Tokeniser(tokenizer, TASK, 128)
    asked, known = encode(Example("stone")), encode(Example("stone", "no"))
    assert asked.answer == ()
    assert asked.prompt == known.prompt


def test_chat_template_writes_its_own_special_tokens(tokenizer: Any) -> None:
    task = Task("talk", prompt_format="chat", instruction="Be brief.")
    tokens = Tokeniser(tokenizer, task, 128)(Example("hello", "hi"))
    assert tokens.prompt.count(tokenizer.bos_token_id) == 1
    assert text_of(tokenizer, tokens.prompt) == "user: Be brief.\nhello\nassistant:"
    assert text_of(tokenizer, tokens.answer) == "hi"


@given(text=words, answer=words, room=st.integers(40, 90))
def test_cut_inputs_keep_instruction_and_tail_and_fit(tokenizer: Any, text: str, answer: str, room: int) -> None:
    encode = Tokeniser(tokenizer, TASK, room)
    try:
        tokens = encode(Example(text, answer))
    except DataError:
        bare = Tokeniser(tokenizer, TASK, 10_000)(Example("", answer, TASK.instruction))
        assert len(bare) > room, "refused only where nothing of the input would fit"
        return
    assert len(tokens) <= room
    assert tokens.answer == encode.answer(answer)
    assert text_of(tokenizer, tokens.answer) == " " + answer
    written = text_of(tokenizer, tokens.prompt)
    assert written.startswith("Is this good?\n")
    assert written.endswith("Answer:")
    kept = written.removeprefix("Is this good?\n").removesuffix("Answer:").removesuffix("\n")
    assert text.startswith(kept), "cut at its end, never inside a character"
    whole = Tokeniser(tokenizer, TASK, 10_000)(Example(text, answer))
    assert tokens.truncated == (len(whole) > room)
    if not tokens.truncated:
        assert tokens == whole


def test_as_much_of_the_input_is_kept_as_fits(tokenizer: Any) -> None:
    text = " ".join(["the", "red", "apple", "is", "good", "and", "the", "blue", "stone", "is", "bad"] * 5)
    for room in range(45, 80, 5):
        tokens = Tokeniser(tokenizer, TASK, room)(Example(text, "yes"))
        assert tokens.truncated
        assert room - 3 <= len(tokens) <= room


@pytest.mark.parametrize("text", ["🍎🍏" * 60, "日本語のテキスト" * 20, "é" * 200, "👩‍👩‍👧‍👦" * 30, "\u0301" * 99])
def test_characters_of_many_bytes_are_cut_whole(tokenizer: Any, text: str) -> None:
    for room in (40, 41, 42, 43, 44):
        tokens = Tokeniser(tokenizer, TASK, room)(Example(text, "no"))
        assert len(tokens) <= room
        assert tokens.truncated
        assert "\ufffd" not in text_of(tokenizer, tokens.prompt)


def test_an_instruction_too_long_by_itself_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="instruction and the answer alone are longer than 20 tokens") as caught:
        Tokeniser(tokenizer, TASK, 20)(Example("x", "yes", "0123456789" * 4))
    assert "--max-length" in caught.value.hint


def test_a_tail_that_does_not_fit_is_an_error_and_never_dropped(tokenizer: Any) -> None:
    """Without an instruction nothing must turn into raw text when it is cut."""
    task = Task("free", prompt_format="{input}\n0123456789:")
    with pytest.raises(DataError):
        Tokeniser(tokenizer, task, 12)(Example("some text that is longer", "y"))


def test_an_answer_without_text_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="has no tokens"):
        Tokeniser(tokenizer, Task("free", prompt_format="plain"), 64)(Example("x", ""))


@given(text=words, room=st.integers(8, 60))
def test_raw_text_is_learned_from_its_second_id_on(tokenizer: Any, text: str, room: int) -> None:
    ids = (*tokenizer(text).input_ids, tokenizer.eos_token_id)
    by_answer = Tokeniser(tokenizer, RAW, room)(Example("", text))
    by_input = Tokeniser(tokenizer, RAW, room)(Example(text))
    assert by_answer == by_input
    assert (*by_input.prompt, *by_input.answer) == ids[:room]
    assert len(by_input.prompt) == 1
    assert by_input.truncated == (len(ids) > room)


def test_every_prompt_has_an_id_to_predict_from(tokenizer: Any) -> None:
    for each in (tokenizer, make_tokenizer(bos=False)):
        begin = each.eos_token_id if each.bos_token_id is None else each.bos_token_id
        tokens = Tokeniser(each, Task("free", prompt_format="{input}"), 64)(Example(" ", "text", ""))
        assert tokens.prompt
        assert Tokeniser(each, Task("free"), 64)(Example("")).prompt == (begin,)


def test_raw_text_kept_under_another_task_stays_raw(tokenizer: Any) -> None:
    """What a knowledge update learned comes back as a replay sample without a question."""
    known = Task("free", instruction="Say it.")
    assert Tokeniser(tokenizer, known, 64)(Example("", "some text")) == Tokeniser(tokenizer, RAW, 64)(
        Example("", "some text")
    )


@given(text=words, room=st.integers(8, 40))
def test_windows_have_every_id_of_a_long_text_once(tokenizer: Any, text: str, room: int) -> None:
    ids = (*tokenizer(text).input_ids, tokenizer.eos_token_id)
    windows = Tokeniser(tokenizer, RAW, room).windows(Example("", text))
    assert all(len(window) <= room and len(window.prompt) == 1 and not window.truncated for window in windows)
    assert tuple(i for window in windows for i in window.answer) == ids[1:]
    assert windows[0].prompt == ids[:1]


def test_a_question_is_one_window(tokenizer: Any) -> None:
    encode = Tokeniser(tokenizer, Task("free"), 64)
    assert encode.windows(Example("question", "answer")) == [encode(Example("question", "answer"))]


# -- conversations ----------------------------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "look", "arguments": {"town": "Ely"}}}
TALKS = Task("talk", "generation", "chat")


def said(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def kept(tokenizer: Any, room: int, *messages: dict[str, Any]) -> list[str]:
    """The lines of a prompt that is cut to fit."""
    tokens = Tokeniser(tokenizer, TALKS, room)(Example.conversation(messages))
    assert len(tokens) <= room
    assert tokens.truncated
    return text_of(tokenizer, tokens.prompt).split("\n")


def test_a_long_conversation_keeps_its_last_question_and_what_follows_it(tokenizer: Any) -> None:
    opening = [said("system", "Be brief."), said("user", "Hello?"), said("assistant", "Hello."), said("tool", "x" * 90)]
    asked = [said("user", "Who is mayor?"), said("assistant", "", tool_calls=[CALL])]
    answer = said("assistant", "Ann")
    call = 'assistant: {"name": "look", "arguments": {"town": "Ely"}}'
    lines = kept(tokenizer, 160, *opening, *asked, said("tool", "Ann Bell"), answer)
    assert lines == ["system: Be brief.", "user: Who is mayor?", call, "tool: Ann Bell", "assistant:"]
    lines = kept(tokenizer, 160, *opening, *asked, said("tool", "ab" * 200), said("tool", "cd" * 100), answer)
    assert lines[:3] == ["system: Be brief.", "user: Who is mayor?", call]
    cut = [line.removeprefix("tool: ") for line in lines[3:5]]
    assert ("ab" * 200).startswith(cut[0])
    assert ("cd" * 100).startswith(cut[1])
    assert min(map(len, cut)) > len("Who is mayor?"), "the longest is cut first"
    assert lines[5:] == ["assistant:"]


def test_a_long_question_is_cut_before_a_short_result(tokenizer: Any) -> None:
    asked = [said("user", "abc" * 99), said("assistant", "", tool_calls=[CALL]), said("tool", "Ann Bell")]
    tokens = Tokeniser(tokenizer, TALKS, 120)(Example.conversation([*asked, said("assistant", "Ann")]))
    lines = text_of(tokenizer, tokens.prompt).split("\n")
    assert ("user: " + "abc" * 99).startswith(lines[0])
    assert len(lines[0]) > 20
    assert lines[2] == "tool: Ann Bell"
    assert 117 <= len(tokens) <= 120, "as much as fits"


def test_a_question_is_not_cut_to_nothing_before_its_results(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"town": "E" * 99}}}
    asked = [said("user", "Who is mayor?"), said("assistant", "", tool_calls=[call]), said("tool", "Ann Bell")]
    with pytest.raises(DataError, match="of the prompt cannot be cut"):
        Tokeniser(tokenizer, TALKS, 100)(Example.conversation([*asked, said("assistant", "Ann")]))


def test_without_a_user_the_last_turn_is_cut(tokenizer: Any) -> None:
    lines = kept(tokenizer, 40, said("tool", "x" * 50), said("tool", "y" * 50), said("assistant", "Ann"))
    assert len(lines) == 2
    assert ("tool: " + "y" * 50).startswith(lines[0])
    assert lines[1] == "assistant:"


def test_an_earlier_answer_is_learned_from_its_first_token_on() -> None:
    """There the space that ends the prompt is part of that token."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>[{{ m.role }}] {{ m.content }}<pad>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>[assistant] {% endif %}"
    )
    talk = [said("user", "a"), said("assistant", "red apple"), said("user", "b"), said("assistant", "good")]
    tokens = Tokeniser(tokenizer, TALKS, 128)(Example.conversation(talk))
    assert [tokenizer.decode(tokens.prompt[a:b]) for a, b in tokens.earlier] == [" red apple<pad>"]
