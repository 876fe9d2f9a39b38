"""A base that reads short and long inputs with other frequencies answers a row as it does alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pico import make_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from adapterhub_cl.answering.choices import LabelTree, score_rows
from adapterhub_cl.answering.decoding import can_decode
from adapterhub_cl.answering.rope_sides import limit_of, sides
from adapterhub_cl.answering.writing import Writing, write_rows

SIZE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
SHORT, LONG = [1, *range(10, 22)], [1, *range(30, 130)]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0 + k for k in range(6)],
            "rope_theta": 10000.0, "original_max_position_embeddings": 32}  # fmt: skip
    config = Phi3Config(**SIZE, max_position_embeddings=512, original_max_position_embeddings=32, rope_parameters=rope)
    return AutoModelForCausalLM.from_config(config).eval()


def test_labels_are_scored_as_alone(model: Any) -> None:
    tree = LabelTree({"one": [40, 41, 2], "two": [42, 2], "three": [40, 43, 44, 2]})
    alone = [score_rows(model, [tree], [prompt], 0)[0] for prompt in (SHORT, LONG)]
    together = score_rows(model, [tree] * 3, [SHORT, LONG, SHORT], 0)
    for found, wanted in zip(together, (alone[0], alone[1], alone[0]), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_answers_are_written_as_alone(model: Any) -> None:
    tokenizer, how = make_tokenizer(), Writing(8)
    assert not can_decode(model)
    alone = [write_rows(model, tokenizer, [prompt], [how])[0].text for prompt in (SHORT, LONG)]
    together = write_rows(model, tokenizer, [SHORT, LONG, SHORT], [how] * 3)
    assert [one.text for one in together] == [alone[0], alone[1], alone[0]]


def test_the_limit(model: Any) -> None:
    assert limit_of(model) == 32
    assert sides(model, [5, 33, 32, 400]) == [[0, 2], [1, 3]]
    assert sides(model, [5, 6]) == [[0, 1]]
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**SIZE))
    assert limit_of(plain) is None
    assert sides(plain, [5, 900]) == [[0, 1]]
