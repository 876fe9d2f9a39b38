"""What every augmentation keeps to, also one that a third party brings."""

from __future__ import annotations

import inspect
import random
import re
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.augmentation import ROOM, Augment, BaseAugmentation, augment, parse
from adapterhub_cl.types import Example

pytestmark = pytest.mark.parametrize("name", ROOM.names())
WORDS = ["not", "Never,", "don't", "without", "spam", "good", "mill", "kettle", "Banana!", "x", "notes", "arrived", "a"]
texts = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join) | st.text(max_size=20)
examples_ = st.builds(
    Example, texts, st.none() | st.sampled_from(["spam", "a mill", "ham"]), st.sampled_from(["", "Say"])
)
PROTECTED = {"not", "never", "don't", "without"}


def write(prompts: Sequence[str], seed: int) -> list[str]:
    generator = random.Random(seed)
    return [f" {' '.join(generator.choices(WORDS, k=6))}\nText: more" for _ in prompts]


def guarded(example: Example) -> Counter[str]:
    """Negations and words of the answer in the input, counted."""
    words = re.findall(r"[\w']+", example.input.casefold())
    return Counter(w for w in words if w in PROTECTED or w in (example.answer or "").casefold().split())


def test_it_is_documented_and_of_one_file(name: str) -> None:
    method = ROOM.get(name)
    module = inspect.getmodule(method)
    assert issubclass(method, BaseAugmentation)
    assert module is not None
    assert module.__doc__
    assert "choose it" in module.__doc__.lower()
    assert method.__doc__
    assert len(inspect.getsource(module).splitlines()) <= 150
    assert str(parse(f"{name}:2")) == f"{name}:2"


@given(example=examples_, seed=st.integers(0, 999))
def test_a_variation_is_another_text_with_the_words_that_carry_the_answer(
    name: str, example: Example, seed: int
) -> None:
    method = ROOM.get(name)()
    text = method.vary(example, random.Random(seed))
    assert ROOM.get(name)().vary(example, random.Random(seed)) == text, "the seed decides"
    if text is not None:
        assert text.casefold().split() != example.input.casefold().split()
        assert text.strip()
        assert guarded(Example(text, example.answer)) == guarded(example)
    assert method.vary(Example("", "raw text"), random.Random(seed)) is None


@given(rows=st.lists(examples_, max_size=8), copies=st.integers(1, 3), seed=st.integers(0, 99))
def test_new_examples_keep_answers_and_instructions_and_copy_nothing(
    name: str, rows: list[Example], copies: int, seed: int
) -> None:
    before, avoid = list(rows), [Example("mill good", "spam", "Say"), Example("GOOD  not kettle", None)]
    made, counts = augment(rows, [Augment(name, copies)], seed, avoid=avoid, writer=write)
    assert rows == before
    assert counts.made == len(made) <= copies * len(rows)
    pairs = {(row.answer, row.instruction) for row in rows}
    assert {(row.answer, row.instruction) for row in made} <= pairs
    keys = [" ".join(f"{row.instruction} {row.input}".casefold().split()) for row in (*made, *avoid)]
    assert len(set(keys)) == len(keys)
    assert not {*keys} & {" ".join(f"{row.instruction} {row.input}".casefold().split()) for row in rows if row.input}
    assert augment(rows, [Augment(name, copies)], seed, avoid=avoid, writer=write) == (made, counts)


def test_it_draws_from_the_generator_only(name: str) -> None:
    rows = [Example(f"the old kettle number {k} has arrived without a lid", "ab"[k % 2]) for k in range(12)]
    random.seed(1)
    state = random.getstate()
    made, _ = augment(rows, [Augment(name, 2)], 7, writer=write)
    assert len(made) >= 20
    assert random.getstate() == state
    random.seed(2)
    assert augment(rows, [Augment(name, 2)], 7, writer=write)[0] == made
    assert augment(rows, [Augment(name, 2)], 8, writer=write)[0] != made
