"""What every selection policy keeps to, also one that a third party brings."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.errors import UsageError
from adapterhub_cl.replay import ROOM, BasePolicy, parse
from adapterhub_cl.types import Example

pytestmark = pytest.mark.parametrize("name", ROOM.names())
rows = st.lists(
    st.builds(Example, st.text(max_size=5), st.one_of(st.none(), st.sampled_from(["a", "b", "c"]))), max_size=40
)


class Told:
    """Evidence that follows from the examples alone."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def losses(self) -> Sequence[float]:
        return [float(len(e.input) % 3) for e in self.examples]

    def embeddings(self) -> Any:
        return np.array([[len(e.input), sum(map(ord, e.input)) % 17, 1.0] for e in self.examples], np.float32)

    def write(self, count: int, seed: int) -> Sequence[tuple[Example, float]]:
        draw = random.Random(seed)
        made = ["".join(draw.choices("klmnopqrstuvwxyz ", k=30)) for _ in range(count)]
        return [(Example(text, draw.choice("ab")), draw.random()) for text in made]


def test_it_is_documented_and_of_one_file(name: str) -> None:
    policy = ROOM.get(name)
    module = inspect.getmodule(policy)
    assert issubclass(policy, BasePolicy)
    assert module is not None
    assert module.__doc__
    assert "choose it" in module.__doc__.lower()
    assert policy.__doc__
    assert policy.needs <= {"losses", "embeddings", "writing"}
    assert policy.nested in ("all", "answer", "")
    assert len(inspect.getsource(module).splitlines()) <= 170
    assert str(parse(f"{name}:20")) == f"{name}:20"


@given(examples=rows, size=st.integers(0, 60), seed=st.integers(0, 999))
def test_it_selects_distinct_indices_of_the_size_asked(
    name: str, examples: list[Example], size: int, seed: int
) -> None:
    policy, before, told = ROOM.get(name)(), list(examples), Told(examples)
    chosen = policy.select(examples, size, random.Random(seed), told)
    assert len(chosen) == len(set(chosen))
    assert all(type(i) is int and 0 <= i < len(examples) for i in chosen)
    if policy.keeps_data:
        assert len(chosen) == min(size, len(examples)), "no fewer than there is room for"
        assert policy.samples(examples, size, random.Random(seed), told) == [examples[i] for i in chosen]
    assert examples == before
    assert ROOM.get(name)().select(examples, size, random.Random(seed), told) == chosen, "the seed decides"
    assert policy.select(examples, size, random.Random(seed), told) == chosen, "nothing is carried over"


@given(examples=rows, size=st.integers(1, 40), seed=st.integers(0, 99))
def test_what_is_kept_stands_in_order_of_priority(name: str, examples: list[Example], size: int, seed: int) -> None:
    policy = ROOM.get(name)()
    if not policy.keeps_data or not policy.nested:
        return
    whole = policy.select(examples, len(examples), random.Random(seed), Told(examples))
    some = policy.select(examples, size, random.Random(seed), Told(examples))
    if policy.nested == "all":
        assert some == whole[:size]
    for answer in {e.answer for e in examples}:
        part = [i for i in some if examples[i].answer == answer]
        assert part == [i for i in whole if i in part]


def test_it_draws_from_the_generator_only(name: str) -> None:
    examples = [Example(f"text {k} of {k * 7 % 11}", "ab"[k % 2]) for k in range(40)]
    random.seed(1)
    np.random.seed(1)
    state, other = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    first = ROOM.get(name)().samples(examples, 10, random.Random(7), Told(examples))
    assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == other  # type: ignore[index,union-attr]
    random.seed(2)
    assert ROOM.get(name)().samples(examples, 10, random.Random(7), Told(examples)) == first
    assert 0 < len(first) <= 10


def test_a_policy_that_must_ask_says_so(name: str) -> None:
    examples = [Example("x", "a"), Example("y", "b")]
    if ROOM.get(name).needs:
        with pytest.raises(UsageError, match=name):
            parse(f"{name}:1").select(examples, 0)
    else:
        assert len(parse(f"{name}:1").select(examples, 0)) == 1


def test_data_that_may_not_be_kept_are_not(name: str) -> None:
    examples = [Example(f"a private line, number {k * 7919}", "ab"[k % 2]) for k in range(30)]
    kept = ROOM.get(name)().samples(examples, 8, random.Random(1), Told(examples))
    assert kept
    if not ROOM.get(name).keeps_data:
        assert not {e.input for e in kept} & {e.input for e in examples}
