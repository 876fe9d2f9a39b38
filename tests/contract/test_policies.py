"""What every selection policy keeps to, also one that a third party brings."""

from __future__ import annotations

import inspect
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.replay import ROOM, BasePolicy, parse
from adapterhub_cl.types import Example

pytestmark = pytest.mark.parametrize("name", ROOM.names())
rows = st.lists(
    st.builds(Example, st.text(max_size=5), st.one_of(st.none(), st.sampled_from(["a", "b", "c"]))), max_size=40
)


def test_it_is_documented_and_of_one_file(name: str) -> None:
    policy = ROOM.get(name)
    module = inspect.getmodule(policy)
    assert issubclass(policy, BasePolicy)
    assert module is not None
    assert module.__doc__
    assert "choose it" in module.__doc__.lower()
    assert policy.__doc__
    assert len(inspect.getsource(module).splitlines()) <= 170
    assert str(parse(f"{name}:20")) == f"{name}:20"


@given(examples=rows, size=st.integers(0, 60), seed=st.integers(0, 999))
def test_it_selects_distinct_ascending_indices_of_the_size_asked(
    name: str, examples: list[Example], size: int, seed: int
) -> None:
    policy, before = ROOM.get(name)(), list(examples)
    chosen = policy.select(examples, size, random.Random(seed))
    assert chosen == sorted(set(chosen))
    assert all(type(i) is int and 0 <= i < len(examples) for i in chosen)
    assert len(chosen) == min(size, len(examples)), "no fewer than there is room for"
    assert examples == before
    assert ROOM.get(name)().select(examples, size, random.Random(seed)) == chosen, "the seed decides"
    assert policy.select(examples, size, random.Random(seed)) == chosen, "nothing is carried over"


def test_it_draws_from_the_generator_only(name: str) -> None:
    examples = [Example(f"text {k}", "ab"[k % 2]) for k in range(40)]
    random.seed(1)
    state = random.getstate()
    first = ROOM.get(name)().select(examples, 10, random.Random(7))
    assert random.getstate() == state
    random.seed(2)
    assert ROOM.get(name)().select(examples, 10, random.Random(7)) == first
