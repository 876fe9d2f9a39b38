"""Rows with adapters of their own that join a running batch: what goes wrong, what is removed, who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from loras import write_lora

from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.answerer import Answerer, AskedRow
from adapterhub_cl.answering.decoding import Decoder
from adapterhub_cl.answering.running_rows import RunningRows
from adapterhub_cl.answering.writing import Writing
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bank.shelf import Shelved, read_adapter
from adapterhub_cl.errors import AdapterError, AdapterHubError, UsageError
from adapterhub_cl.types import Example, Task

FREE = Task("free", "generation", instruction="Go on.")
REFS = [f"a{k}@v1" for k in range(5)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("running")
    return {ref: write_lora(root / ref, k, rank=(3, 8)[k % 2]) for k, ref in enumerate(REFS)}


@pytest.fixture(scope="module")
def base(load_pico: Callable[..., Any]) -> Any:
    return load_pico()


@pytest.fixture
def answering(base: Any, folders: Mapping[str, Path]) -> Iterator[Callable[..., tuple[Answerer, RunningRows]]]:
    banks: list[LoraBank] = []

    def read(ref: str) -> Shelved:
        if ref not in folders:
            raise AdapterError(f"{ref} cannot be read")
        return read_adapter(folders[ref], base.dtype)

    def make(size: int = 8, **options: Any) -> tuple[Answerer, RunningRows]:
        while banks:
            banks.pop().close()
        banks.append(LoraBank(base, read, **options))
        answerer = Answerer(base.tokenizer, banks[0], max_length=base.context)
        return answerer, RunningRows(answerer, size)

    yield make
    while banks:
        banks.pop().close()


def rows_of(count: int = 7) -> list[AskedRow]:
    """Of several lengths, adapters and ways of drawing."""
    found = []
    for k in range(count):
        mixture = {REFS[k % 5]: 1.0} if k % 6 else {}
        if k % 4 == 3:
            mixture = {REFS[k % 5]: 0.7, REFS[(k + 1) % 5]: 0.3}
        text = " ".join(f"w{(k * 7 + n) % 23}" for n in range(1 + k * 3 % 11))
        found.append(AskedRow(FREE, Example(text), mixture, Writing(3 + 5 * k % 17, temperature=k % 2, seed=k)))
    return found


class Heard:
    """The answers by row; each is given once."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer | Exception] = {}

    def __call__(self, index: int, answer: Answer | Exception) -> None:
        assert index not in self.answers
        self.answers[index] = answer


def ask(answerer: Answerer, running: RunningRows, rows: list[AskedRow]) -> Heard:
    heard = Heard()
    answerer.answer(rows, heard, running=running)
    return heard


def finish(running: RunningRows) -> None:
    for _ in range(400):
        if not running:
            return
        running.step()
    raise AssertionError("it never ends")


def same(found: Heard, right: Mapping[int, Any]) -> None:
    assert found.answers.keys() == right.keys()
    for k, one in right.items():
        other = found.answers[k]
        assert isinstance(other, Answer)
        assert [token for token, _ in other.tokens] == [token for token, _ in one.tokens]
        assert (other.text, other.finished, other.prompt_tokens) == (one.text, one.finished, one.prompt_tokens)
        assert other.confidence == pytest.approx(one.confidence, rel=1e-3)


def alone(answerer: Answerer, rows: list[AskedRow]) -> dict[int, Answer]:
    return {k: answerer.all([row])[0] for k, row in enumerate(rows)}


@pytest.mark.parametrize(("size", "capacity"), [(8, 64), (3, 64), (8, 2)])
def test_rows_that_join_at_any_time_get_what_each_gets_alone(
    answering: Any, monkeypatch: pytest.MonkeyPatch, size: int, capacity: int
) -> None:
    rows = rows_of()
    right = alone(answering()[0], rows)
    answerer, running = answering(size, capacity=capacity)
    most: list[int] = []
    real = answerer.adapters.require

    def watched(refs: Any) -> None:
        real(refs)
        most.append(max(running.fill, len(answerer.adapters.refs) if capacity == 2 else 0))

    monkeypatch.setattr(answerer.adapters, "require", watched)
    heard = Heard()
    for k, row in enumerate(rows):
        answerer.answer([row], lambda _, answer, k=k: heard(k, answer), running=running)
        running.step()
        running.step()
        choice = AskedRow(Task("c", "choice", labels=("x", "y")), Example("a"), {REFS[k % 5]: 1.0})
        assert answerer.all([choice])[0].text in ("x", "y")  # chosen between two tokens, with another adapter
    finish(running)
    same(heard, right)
    assert max(most) <= min(size, 8)
    assert running.waiting == running.fill == 0


def test_a_short_row_ends_before_a_long_one_that_began_earlier(answering: Any) -> None:
    answerer, running = answering()
    long, short = AskedRow(FREE, Example("w1"), {}, Writing(40)), AskedRow(FREE, Example("w2"), {}, Writing(2))
    heard_long = ask(answerer, running, [long])
    for _ in range(3):
        running.step()
    heard_short = ask(answerer, running, [short])
    running.step()
    assert (len(heard_short.answers), len(heard_long.answers), running.fill) == (1, 0, 1)
    finish(running)
    assert len(heard_long.answers) == 1


def test_an_adapter_that_is_removed_serves_its_rows_to_their_end(answering: Any) -> None:
    rows = [AskedRow(FREE, Example("w1 w2"), {REFS[k]: 1.0}, Writing(14)) for k in range(3)]
    right = alone(answering()[0], rows)
    answerer, running = answering(capacity=3)
    bank, heard = answerer.adapters, ask(answerer, running, rows)
    running.step()
    bank.remove([REFS[1]])
    bank.require([REFS[3], REFS[4]])  # others take its place
    running.step()
    finish(running)
    same(heard, right)
    assert REFS[1] not in [*bank.refs, *bank.shelf.refs]
    assert not bank._held
    bank.remove([REFS[0]])
    assert REFS[0] not in bank.refs


def test_a_row_that_nobody_waits_for_is_freed_at_once(answering: Any) -> None:
    answerer, running = answering(2)
    there = [True, True, True]
    rows = [AskedRow(FREE, Example(f"w{k}"), {}, Writing(30), wanted=lambda k=k: there[k]) for k in range(3)]
    heard = ask(answerer, running, rows)
    running.step()
    assert (running.fill, running.waiting) == (2, 1)
    there[0] = False
    running.step()  # and the one that waits has its place
    assert (running.fill, running.waiting) == (2, 0)
    assert isinstance(heard.answers[0], Answer)
    assert 0 < len(heard.answers[0].tokens) < 5
    assert not heard.answers[0].finished
    there[1] = there[2] = False
    running.step()
    assert not running
    waits = AskedRow(FREE, Example("x"), {}, Writing(30), wanted=lambda: False)
    heard = ask(answerer, running, [waits])
    running.step()
    assert "nobody waits" in str(heard.answers[0])  # not even its prompt was read


def test_who_says_no_is_freed_and_whose_emit_fails_gets_its_error(answering: Any) -> None:
    answerer, running = answering()

    def fails(piece: str) -> bool:
        raise ValueError("hung up")

    pieces: list[str] = []
    rows = [
        AskedRow(FREE, Example("w1"), {}, Writing(30), emit=lambda piece: False),
        AskedRow(FREE, Example("w1"), {}, Writing(30), emit=fails),
        AskedRow(FREE, Example("w1"), {}, Writing(30), emit=lambda piece: not pieces.append(piece)),
    ]
    heard = ask(answerer, running, rows)
    for _ in range(4):
        running.step()
    assert running.fill == 1
    finish(running)
    assert len(heard.answers[0].tokens) < 6  # type: ignore[union-attr]
    assert isinstance(heard.answers[1], ValueError)
    assert heard.answers[2].text == "".join(pieces)  # type: ignore[union-attr]


def test_halting_ends_what_is_written_and_refuses_what_waits(answering: Any) -> None:
    answerer, running = answering(1)
    heard = ask(answerer, running, [AskedRow(FREE, Example(f"w{k}"), {}, Writing(30)) for k in range(2)])
    running.step()
    answerer.halt = lambda: True
    running.step()
    assert not running
    assert isinstance(heard.answers[0], Answer)
    assert not heard.answers[0].finished
    assert "the engine was closed" in str(heard.answers[1])


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_where_memory_does_not_suffice_fewer_rows_are_written_at_once(
    answering: Any, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    pieces: dict[int, list[str]] = {k: [] for k in range(7)}
    rows = rows_of()
    right = alone(answering()[0], rows)
    heard_by = [lambda piece, k=k: not pieces[k].append(piece) for k in range(7)]
    rows = [AskedRow(row.task, row.example, row.mixture, row.writing, emit=heard_by[k]) for k, row in enumerate(rows)]
    answerer, running = answering()
    real, passes = Decoder._pass, iter(range(10**6))

    def narrow(self: Decoder, context: Any, ids: torch.Tensor, *given: Any) -> torch.Tensor:
        if len(ids) > fits and next(passes) % 3 == 2:  # not at once: something is written by then
            raise torch.OutOfMemoryError("no memory")
        return real(self, context, ids, *given)

    monkeypatch.setattr(Decoder, "_pass", narrow)
    heard = ask(answerer, running, rows)
    finish(running)
    same(heard, right)
    for k, answer in right.items():
        assert "".join(pieces[k]) == answer.text
    assert not answerer.adapters._held


def test_a_row_that_fails_alone_gets_the_error_and_no_other_does(
    answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(5)
    right = alone(answering()[0], rows)
    answerer, running = answering()
    real = Decoder._pass

    def broken(self: Decoder, context: Any, ids: torch.Tensor, *given: Any) -> torch.Tensor:
        if bool((ids == 77).any()):
            raise torch.OutOfMemoryError("no memory")
        return real(self, context, ids, *given)

    monkeypatch.setattr(Decoder, "_pass", broken)
    culprit = AskedRow(FREE, Example(""), {}, Writing(9), (1, 77, 50))
    gone, three = AskedRow(FREE, Example("x"), {"gone@v1": 1.0}), AskedRow(FREE, Example("x"), dict.fromkeys(REFS, 0.2))
    heard = ask(answerer, running, [*rows, culprit, gone, three])
    finish(running)
    assert str(heard.answers.pop(5)).startswith("not enough memory for one input of 3 tokens")
    assert str(heard.answers.pop(6)) == "gone@v1 cannot be read"
    assert isinstance(heard.answers.pop(7), Answer)
    same(heard, right)
    narrow_answerer, narrow_running = answering(capacity=4)
    heard = ask(narrow_answerer, narrow_running, [three])
    finish(narrow_running)
    assert isinstance(heard.answers[0], UsageError)


def test_a_step_that_fails_is_repeated_with_half_of_the_rows(answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(4)
    right = alone(answering()[0], rows)
    answerer, running = answering()
    heard = ask(answerer, running, rows)
    running.step()
    real, tried = Decoder.step, []

    def broken(self: Decoder) -> Any:
        tried.append(len(self.rows))
        if len(tried) == 1:
            raise RuntimeError("an accident")
        return real(self)

    monkeypatch.setattr(Decoder, "step", broken)
    running.step()
    assert (running.fill, running.waiting) == (0, tried[0])
    running.step()
    finish(running)
    assert tried[0] > tried[1] >= 1
    assert tried[1] <= tried[0] // 2
    same(heard, right)
    running.abandon(AdapterHubError("nothing is there"))
