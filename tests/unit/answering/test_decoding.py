"""The decode loop: what it writes is what `generate` writes, whoever joins and leaves meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import transformers

from adapterhub_cl.answering import Answer, writing
from adapterhub_cl.answering.decoding import Decoder, alike, can_decode
from adapterhub_cl.answering.writing import Writing, write_rows
from adapterhub_cl.answering.written import WrittenRow

PROMPTS = ((1, 40, 41, 42), (1, 90, 17, 63, 204, 11, 12, 13, 250), (1, 7), (1, 260, 261, 33, 120, 9, 8, 77, 60, 61, 62))
WANTED = (Writing(12), Writing(3), Writing(25, 0.9, 0.9, seed=4), Writing(18, 1.3, seed=5, stop=("a", "e")))


def ids_of(answers: Sequence[Answer]) -> list[list[int]]:
    return [[token for token, _ in one.tokens] for one in answers]


def by_generate(monkeypatch: pytest.MonkeyPatch, *given: Any, **more: Any) -> list[Answer]:
    with monkeypatch.context() as patch:
        patch.setattr(writing, "can_decode", lambda model: False)
        return write_rows(*given, **more)


def decoder_on(base: Any, **options: Any) -> Decoder:
    return Decoder(base.model, lambda _: nullcontext(base.model), 0, [2], **options)


def row_of(base: Any, k: int) -> WrittenRow:
    return WrittenRow(base.tokenizer, {2}, PROMPTS[k], WANTED[k])


@contextmanager
def shapes(base: Any) -> Iterator[list[tuple[int, int]]]:
    """Rows and columns of each pass of the model."""
    seen: list[tuple[int, int]] = []
    hook = base.model.register_forward_pre_hook(
        lambda _, given, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "bloom"])
def test_it_writes_what_generate_writes(
    load_pico: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_pico(kind)
    assert can_decode(base.model)
    mine = write_rows(base.model, base.tokenizer, PROMPTS, WANTED)
    theirs = by_generate(monkeypatch, base.model, base.tokenizer, PROMPTS, WANTED)
    assert ids_of(mine) == ids_of(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert (one.text, one.finished) == (other.text, other.finished)
        assert one.confidence == pytest.approx(other.confidence, rel=1e-3)
    mine = write_rows(base.model, base.tokenizer, PROMPTS, [Writing(9, 1.0, seed=k) for k in range(4)], top_k=3)
    theirs = by_generate(
        monkeypatch, base.model, base.tokenizer, PROMPTS, [Writing(9, 1.0, seed=k) for k in range(4)], top_k=3
    )
    assert ids_of(mine) == ids_of(theirs)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_rows_that_join_and_leave_write_what_they_write_alone(load_pico: Callable[..., Any], kind: str) -> None:
    base = load_pico(kind)
    alone = [write_rows(base.model, base.tokenizer, [PROMPTS[k]], [WANTED[k]])[0] for k in range(4)]
    for order in ([2, 0, 1, 3], [3, 2, 1, 0]):
        rows = {k: row_of(base, k) for k in order}
        decoder, left = decoder_on(base), list(order)
        while left or decoder.rows:
            if left:
                decoder.join([rows[left.pop(0)]])
            for _ in range(3):
                if decoder.rows:
                    decoder.step()
                    # Nothing is kept for those who left: the longest of the others has no padding.
                    assert not decoder.rows or decoder._mask.shape[1] == int(decoder._lengths.max())
        assert ids_of([rows[k].finish() for k in range(4)]) == ids_of(alone)


def test_rows_that_are_done_are_computed_no_more(load_pico: Callable[..., Any]) -> None:
    base = load_pico()
    with shapes(base) as seen:
        write_rows(base.model, base.tokenizer, [PROMPTS[0]] * 3, [Writing(n) for n in (2, 4, 1)])
    assert seen == [(3, 4), (2, 1), (1, 1), (1, 1)]
    with shapes(base) as seen:  # a row that is taken out frees its place at once
        decoder, rows = decoder_on(base), [row_of(base, 0), row_of(base, 2)]
        decoder.join(rows)
        decoder.drop([rows[1]])
        decoder.step()
    assert [count for count, _ in seen] == [2, 1]


def test_an_answer_that_was_interrupted_is_gone_on_with(load_pico: Callable[..., Any]) -> None:
    base = load_pico()
    right = write_rows(base.model, base.tokenizer, PROMPTS, WANTED)
    rows = [row_of(base, k) for k in range(4)]
    decoder = decoder_on(base)
    decoder.join(rows)
    for _ in range(3):
        decoder.step()
    rest = decoder.clear()
    assert len(rest) == 3
    decoder.join(rest)
    while decoder.rows:
        decoder.step()
    assert ids_of([row.finish() for row in rows]) == ids_of(right)


def test_a_step_that_fails_in_joining_leaves_the_others_as_they_were(
    load_pico: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_pico()
    [right] = write_rows(base.model, base.tokenizer, [PROMPTS[2]], [WANTED[2]])
    decoder, row = decoder_on(base), row_of(base, 2)
    decoder.join([row])
    decoder.step()
    with monkeypatch.context() as patch:
        patch.setattr("adapterhub_cl.answering.decoding._joined", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoder.join([row_of(base, 0)])
    assert decoder.rows == [row]
    while decoder.rows:
        decoder.step()
    assert ids_of([row.finish()]) == ids_of([right])


def test_what_the_generation_config_asks_for_is_done(
    load_pico: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_pico()
    plain = write_rows(base.model, base.tokenizer, PROMPTS[:1], [Writing(20)])
    base.model.generation_config.repetition_penalty = 1.8
    base.model.generation_config.no_repeat_ngram_size = 2
    mine = write_rows(base.model, base.tokenizer, PROMPTS[:1], [Writing(20)])
    assert ids_of(mine) == ids_of(by_generate(monkeypatch, base.model, base.tokenizer, PROMPTS[:1], [Writing(20)]))
    assert ids_of(mine) != ids_of(plain)
    beside = write_rows(base.model, base.tokenizer, PROMPTS, [Writing(20)] * 4)
    assert ids_of(beside[:1]) == ids_of(mine)


def test_bases_whose_cache_cannot_be_cut_are_written_by_generate(load_pico: Callable[..., Any]) -> None:
    window = load_pico("mistral")  # a sliding window
    assert not can_decode(window.model)
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=2)
    ).eval()
    assert not can_decode(mamba)
    for model in (window.model, mamba):
        [alone] = write_rows(model, window.tokenizer, PROMPTS[:1], [Writing(6)])
        assert 1 <= len(alone.tokens) <= 6
    beams = load_pico()
    beams.model.generation_config.num_beams = 3
    assert not can_decode(beams.model)


def test_prompts_are_read_with_those_of_similar_length(pico_base: Any) -> None:
    rows = [WrittenRow(pico_base.tokenizer, {2}, [1] * n, Writing(1)) for n in (9, 100, 8, 90, 300, 10)]
    groups = [[len(row.prompt) for row in group] for group in alike(rows)]
    assert groups == [[8, 9, 10], [90, 100], [300]]
    assert list(alike([])) == []


def test_a_nan_of_one_row_is_not_anothers(load_pico: Callable[..., Any]) -> None:
    base = load_pico()
    [right] = write_rows(base.model, base.tokenizer, PROMPTS[:1], [Writing(8)])
    with torch.no_grad():
        base.model.get_input_embeddings().weight[7] = torch.nan  # only PROMPTS[2] has this token
    found = write_rows(base.model, base.tokenizer, [PROMPTS[0], PROMPTS[2]], [Writing(8)] * 2)
    assert found[1].confidence != found[1].confidence
    assert ids_of(found[:1]) == ids_of([right])
