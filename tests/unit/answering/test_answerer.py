"""Mixed batches: whatever stands beside a row, it is answered as it is alone, and as under plain PEFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from loras import write_lora
from peft import PeftModel

from adapterhub_cl.answering import Answer
from adapterhub_cl.answering import answerer as room
from adapterhub_cl.answering.answerer import Answerer, AskedRow
from adapterhub_cl.answering.writing import Writing
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bank.shelf import Shelved, read_adapter
from adapterhub_cl.errors import AdapterError, AdapterHubError, DataError, UsageError
from adapterhub_cl.objectives.causal_lm import Objective
from adapterhub_cl.types import Example, Task

MOOD = Task("mood", "choice", instruction="How is it?", labels=("good", "bad", "so so"))
TOPIC = Task("topic", "choice", "chat", labels=("sports", "sport", "science and nature"))
YESNO = Task("yesno", "choice", "alpaca", instruction="Is it?", labels=("yes", "no"))
FREE = Task("free", "generation", instruction="Go on.")
TEXT = Task("text", "text")
TASKS = (MOOD, TOPIC, FREE, YESNO, TEXT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Eight adapters of several ranks, on several layers."""
    root = tmp_path_factory.mktemp("mixed")
    modules = [("q_proj", "v_proj"), ("o_proj", "up_proj", "down_proj")]
    return {
        f"a{k}@v1": write_lora(root / f"a{k}", k, rank=(3, 8, 16)[k % 3], modules=modules[k % 2], rslora=k == 4)
        for k in range(8)
    }


@pytest.fixture(scope="module")
def base(load_pico: Callable[..., Any]) -> Any:
    return load_pico()


@pytest.fixture
def bank(base: Any, folders: Mapping[str, Path]) -> Iterator[LoraBank]:
    def read(ref: str) -> Shelved:
        if ref not in folders:
            raise AdapterError(f"{ref} cannot be read")
        return read_adapter(folders[ref], base.dtype)

    opened = LoraBank(base, read)
    yield opened
    opened.close()


def answerer_on(base: Any, bank: LoraBank, max_length: int | None = None) -> Answerer:
    return Answerer(base.tokenizer, bank, max_length=max_length or base.context)


def rows_of(count: int, seed: int = 0) -> list[AskedRow]:
    """Rows of all tasks and lengths, with one adapter, several, or none."""
    refs = [f"a{k}@v1" for k in range(8)]
    found = []
    for k in range(count):
        mixture = {refs[k % 8]: 1.0} if k % 4 else {}
        if k % 5 == 3:
            mixture = {refs[k % 8]: 0.7, refs[(k + 3) % 8]: 0.3}
        text = " ".join(f"w{(k * 7 + n + seed) % 23}" for n in range(1 + k * 3 % 11))
        found.append(AskedRow(TASKS[k % 5], Example(text), mixture, Writing(4 + k % 3, temperature=k % 2, seed=k)))
    return found


def answers_of(answerer: Answerer, rows: Sequence[AskedRow], **options: Any) -> list[Answer | AdapterHubError]:
    """Each row's answer, given exactly once."""
    found: dict[int, Answer | AdapterHubError] = {}

    def give(index: int, answer: Answer | AdapterHubError) -> None:
        assert index not in found
        found[index] = answer

    answerer.answer(rows, give, **options)
    assert sorted(found) == list(range(len(rows)))
    return [found[k] for k in range(len(rows))]


def alike(one: Answer | AdapterHubError, other: Answer | AdapterHubError) -> None:
    assert isinstance(one, Answer)
    assert isinstance(other, Answer)
    assert one.text == other.text
    assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
    assert one.scores == pytest.approx(other.scores, abs=1e-4)
    assert one.truncated == other.truncated


def test_rows_of_all_kinds_get_what_each_gets_alone(base: Any, bank: LoraBank) -> None:
    answerer, rows = answerer_on(base, bank), rows_of(20)
    together = answers_of(answerer, rows)
    for row, answer in zip(rows, together, strict=True):
        alike(answer, answers_of(answerer, [row])[0])
    for row, answer in zip(rows, together, strict=True):
        assert isinstance(answer, Answer)
        assert list(answer.scores) == list(row.task.labels)
        assert not answer.scores or sum(answer.scores.values()) == pytest.approx(1)
    # The rows do differ by their adapters.
    same = [AskedRow(MOOD, Example("one text"), mixture) for mixture in ({}, {"a0@v1": 1.0}, {"a1@v1": 1.0})]
    assert len({tuple(a.scores.values()) for a in answers_of(answerer, same) if isinstance(a, Answer)}) == 3


@pytest.mark.parametrize("ref", ["a0@v1", "a4@v1", "a5@v1", None])
def test_rows_are_those_of_plain_peft(
    base: Any, bank: LoraBank, folders: Mapping[str, Path], load_pico: Callable[..., Any], ref: str | None
) -> None:
    plain = load_pico()
    model = plain.model if ref is None else PeftModel.from_pretrained(plain.model, str(folders[ref]))
    examples = [Example("a stone"), Example("a much longer text about stones 1 2 3"), Example("x", None, "Own words:")]
    others = rows_of(7)
    for task in TASKS:
        right = Objective().predict(model, plain.tokenizer, task, examples, max_length=base.context, max_new_tokens=6)
        mine = [AskedRow(task, example, {ref: 1.0} if ref else {}, Writing(6)) for example in examples]
        found = answers_of(answerer_on(base, bank), [*others, *mine])[len(others) :]
        for (text, confidence, scores, *_), answer in zip(right, found, strict=True):
            alike(answer, Answer(text, confidence, scores))


def test_more_adapters_than_the_bank_holds(base: Any, folders: Mapping[str, Path]) -> None:
    def read(ref: str) -> Shelved:
        return read_adapter(folders[ref], base.dtype)

    rows = rows_of(24)
    wide = LoraBank(base, read)
    right = answers_of(answerer_on(base, wide), rows)
    wide.close()
    narrow = LoraBank(base, read, capacity=2)
    for answer, one in zip(answers_of(answerer_on(base, narrow), rows), right, strict=True):
        alike(answer, one)
    three = AskedRow(MOOD, Example("x"), {"a0@v1": 0.4, "a1@v1": 0.3, "a2@v1": 0.3})
    wrong, fine = answers_of(answerer_on(base, narrow), [three, rows[1]])
    assert isinstance(wrong, UsageError)
    assert "3 adapters at once, and the bank holds 2" in wrong.message
    alike(fine, right[1])
    narrow.close()


def test_a_row_whose_adapter_cannot_be_read_gets_its_error_and_the_others_their_answer(
    base: Any, bank: LoraBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer, rows = answerer_on(base, bank), rows_of(6)
    right = answers_of(answerer, rows)
    broken = AskedRow(MOOD, Example("x"), {"gone@v1": 1.0})
    found = answers_of(answerer, [*rows[:3], broken, *rows[3:]])
    assert isinstance(found[3], AdapterError)
    assert found[3].message == "gone@v1 cannot be read"
    for answer, one in zip([*found[:3], *found[4:]], right, strict=True):
        alike(answer, one)
    # It was there when the rows were looked at, and is gone when the batch is computed.
    require = bank.require
    monkeypatch.setattr(bank, "require", lambda refs: None if refs == broken.mixture else require(refs))
    found = answers_of(answerer, [*rows, broken])
    assert isinstance(found.pop(), AdapterError)
    for answer, one in zip(found, right, strict=True):
        alike(answer, one)


def test_too_long_inputs_are_cut_and_say_so(base: Any, bank: LoraBank) -> None:
    long = Example("stone " * 300)
    answerer = answerer_on(base, bank, 230)
    kinds = [AskedRow(task, long, {"a1@v1": 1.0}, Writing(9)) for task in TASKS]
    short = AskedRow(MOOD, Example("stone"), {"a1@v1": 1.0})
    found = answers_of(answerer, [*kinds, short])
    assert [a.truncated for a in found if isinstance(a, Answer)] == [True] * 5 + [False]
    cut = answers_of(answerer, [AskedRow(MOOD, Example("stone " * 200), {"a1@v1": 1.0})])[0]
    alike(found[0], cut)  # what is beyond the cut does not count
    wordy = AskedRow(MOOD, Example("x", None, "please " * 300), {})
    error, fine = answers_of(answerer, [wordy, short])
    assert isinstance(error, DataError)
    assert "the instruction and the answer alone are longer" in error.message
    alike(fine, found[-1])


def test_a_long_neighbour_takes_no_room_from_a_row(base: Any, bank: LoraBank) -> None:
    answerer = answerer_on(base, bank, 120)
    mine = AskedRow(FREE, Example("stone"), {"a1@v1": 1.0}, Writing(60))
    long = AskedRow(FREE, Example("z" * 70), {}, Writing(8))
    alone, [together, _] = answers_of(answerer, [mine]), answers_of(answerer, [mine, long])
    assert isinstance(alone[0], Answer)
    assert len(base.tokenizer(alone[0].text).input_ids) > 40
    alike(together, alone[0])


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_where_memory_does_not_suffice_the_batch_is_halved(
    base: Any, bank: LoraBank, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    rows = rows_of(15)
    right = answers_of(answerer_on(base, bank), rows)
    for name in ("score_rows", "write_rows"):
        narrow(monkeypatch, name, fits)
    for answer, one in zip(answers_of(answerer_on(base, bank), rows), right, strict=True):
        alike(answer, one)


def narrow(monkeypatch: pytest.MonkeyPatch, name: str, fits: int) -> None:
    whole = getattr(room, name)

    def run(model: Any, *given: Any, **more: Any) -> Any:
        if len(given[0 if name == "score_rows" else 1]) > fits:
            tokens = iter(range(3))

            def out_of_memory() -> bool:
                if next(tokens) == 2:
                    raise torch.OutOfMemoryError("no memory")
                return False

            if name == "write_rows":  # memory runs out when something is written already
                whole(model, *given, **{**more, "halt": out_of_memory})
            raise torch.OutOfMemoryError("no memory")
        return whole(model, *given, **more)

    monkeypatch.setattr(room, name, run)


def test_a_stream_says_nothing_twice_when_the_batch_is_halved(
    base: Any, bank: LoraBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch, "write_rows", 1)
    pieces: list[list[str]] = [[], [], []]
    rows = [
        AskedRow(
            FREE,
            Example(""),
            {f"a{k}@v1": 1.0},
            Writing(12),
            (1, 50 + k, 60),
            emit=lambda p, k=k: not pieces[k].append(p),
        )
        for k in range(3)
    ]
    for heard, answer in zip(pieces, answers_of(answerer_on(base, bank), rows), strict=True):
        assert isinstance(answer, Answer)
        assert "".join(heard) == answer.text
        assert answer.text


def test_a_row_too_large_for_the_memory_gets_an_error_of_its_own(
    base: Any, bank: LoraBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(5)
    right = answers_of(answerer_on(base, bank), rows)
    narrow(monkeypatch, "write_rows", 0)
    for row, answer, one in zip(rows, answers_of(answerer_on(base, bank), rows), right, strict=True):
        if row.chooses:
            alike(answer, one)
        else:
            assert isinstance(answer, AdapterHubError)
            assert answer.message.startswith("not enough memory for one input of ")


def test_an_adapter_that_has_diverged_is_named(base: Any, folders: Mapping[str, Path], tmp_path: Path) -> None:
    huge = write_lora(tmp_path / "huge", 1, size=1e20)
    bank = LoraBank(base, lambda ref: read_adapter(huge if ref == "huge@v1" else folders[ref], base.dtype))
    wild, fine = {"huge@v1": 1.0}, {"a1@v1": 1.0}
    rows = [AskedRow(task, Example("stone"), mixture, Writing(3)) for task in (MOOD, FREE) for mixture in (wild, fine)]
    found = answers_of(answerer_on(base, bank), rows)
    assert [type(answer) for answer in found] == [AdapterError, Answer, AdapterError, Answer]
    assert str(found[0]) == "huge@v1 gives no finite scores"
    bank.close()
