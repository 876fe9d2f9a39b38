"""Templates that end the assistant's turn in every way: what is learned, and what is no part of an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pico import make_tokenizer

from adapterhub_cl.answering.written import Writing, WrittenRow
from adapterhub_cl.data import chat
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.types import Example, Task

ASKED = Task("t", "generation", "chat")
# What follows an answer, and the token that ends it; <pad> and </s> are special tokens, the others plain text.
ENDS = [
    ("<pad>\n", "<pad>"),
    ("\n---------\n<pad>", "<pad>"),
    ("<|im_end|>\n", "</s>"),
    (" [/A]", "</s>"),
    ("\n\n### End\n", "</s>"),
    (".\n", "</s>"),
    ("\n", "</s>"),
    (" </s>", "</s>"),
    ("\n=== one more line that is far longer than a token or two ===\n</s>\n", "</s>"),
]


def speaker_of(end: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ END }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ).replace("END", repr(end))
    return tokenizer


@pytest.mark.parametrize(("end", "token"), ENDS)
def test_the_answer_is_without_what_the_template_writes_behind_it(end: str, token: str) -> None:
    speaker = speaker_of(end)
    encode = Tokeniser(speaker, ASKED, 256)
    row = encode(Example("hi", "good."))
    whole = chat.apply(
        speaker, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "good."}], prompt=False
    )
    learned = speaker.decode(row.ids)
    assert speaker.convert_ids_to_tokens(row.answer[-1]) == token
    assert row.answer.count(row.answer[-1]) == 1
    written = whole.rpartition(token)[0] if token in whole else whole
    assert learned.removesuffix(token).rstrip() == written.rstrip(), "as the template writes it"
    assert encode.written(speaker.decode(row.answer, skip_special_tokens=True)) == "good."
    assert encode.written("good.") == "good." or end == ".\n"


@pytest.mark.parametrize(("end", "token"), ENDS)
def test_a_streamed_answer_is_the_same(end: str, token: str) -> None:
    speaker = speaker_of(end)
    encode = Tokeniser(speaker, ASKED, 256)
    ids = encode(Example("hi", "good. well --- done")).answer
    pieces: list[str] = []

    def emit(piece: str) -> bool:
        pieces.append(piece)
        return True

    row = WrittenRow(speaker, {ids[-1]}, [1], Writing(200), encode.frame, emit)
    for number in ids:
        row.take(number, 0.0)
    answer = row.finish()
    assert (answer.text, answer.finished) == ("good. well --- done", True)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 3


@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_ends_the_turn_whether_it_is_special_or_not(special: bool) -> None:
    speaker = speaker_of("<|im_end|>\n")
    speaker.add_tokens(["<|im_end|>"], special_tokens=special)
    end = speaker.convert_tokens_to_ids("<|im_end|>")
    encode = Tokeniser(speaker, ASKED, 256)
    answer = encode(Example("hi", "good")).answer
    assert (encode.end, answer[-1], answer.count(end)) == (end, end, 1)
    row = WrittenRow(speaker, set(chat.end_ids(speaker, torch.nn.Module())), [1], Writing(20), encode.frame)
    for number in answer:
        row.take(number, 0.0)
    assert (row.finish().text, row.ended) == ("good", True)


def test_an_added_token_of_spaces_does_not_end_a_turn() -> None:
    speaker = speaker_of("\n\n")
    speaker.add_tokens(["\n\n"])
    assert chat.turn_end(speaker) is None
    assert Tokeniser(speaker, ASKED, 256).end == speaker.eos_token_id
