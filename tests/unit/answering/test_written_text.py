"""The text of a row while it is written: that of all its tokens, and not decoded from the start each time."""

from __future__ import annotations

from typing import Any

import pytest
from pico import make_tokenizer
from transformers import AutoTokenizer

from adapterhub_cl.answering.written import Writing, WrittenRow
from adapterhub_cl.bases import resolve
from adapterhub_cl.data.formats import Frame

TEXTS = [
    "  four words , and  more .\n\n\tindented don't stop ",
    "naïve café 今天天气 😀👩‍👩‍👧 ﷽ Ωmega",
    "a" * 90 + " 1 2 3 ... end",
]


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, ids: list[int], **how: Any) -> str:
        self.decoded += len(ids)
        return str(self.tokenizer.decode(ids, **how))


@pytest.fixture(scope="module", params=["pico", "tiny"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return make_tokenizer() if request.param == "pico" else AutoTokenizer.from_pretrained(resolve("tiny"))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("frame", [None, Frame(" ", "")])
def test_what_is_emitted_is_what_all_tokens_say(tokenizer: Any, text: str, frame: Frame | None) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    end = tokenizer.eos_token_id
    pieces: list[str] = []

    def emit(piece: str) -> bool:
        pieces.append(piece)
        return True

    row = WrittenRow(tokenizer, {end}, [1], Writing(len(ids) + 9, stop=("never",)), frame, emit)
    for number in [*ids, end]:
        row.take(number, 0.0)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces) == row.finish().text == (whole if frame is None else frame.inside(whole))


def test_a_long_answer_is_not_decoded_again_for_every_token(tokenizer: Any) -> None:
    counting = Counting(tokenizer)
    ids = tokenizer("many words in a row " * 200, add_special_tokens=False).input_ids
    row = WrittenRow(counting, {-1}, [1], Writing(len(ids), stop=("never",)), Frame(), lambda _: True)
    for number in ids:
        row.take(number, 0.0)
    assert counting.decoded < 30 * len(ids)
