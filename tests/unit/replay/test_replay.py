"""Which examples are kept: how `--replay` is read, and what each policy promises."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.replay import DEFAULT, Keep, parse
from adapterhub_cl.replay._groups import few_answers
from adapterhub_cl.replay.balanced import Policy as Balanced
from adapterhub_cl.replay.reservoir import Policy as Reservoir
from adapterhub_cl.types import Example


def examples(labels: list[str]) -> list[Example]:
    return [Example(f"text {k}", label) for k, label in enumerate(labels)]


def test_parse() -> None:
    assert parse("balanced:200") == Keep("balanced", 200)
    assert parse("reservoir:0").size == 0
    assert parse("none").size == 0
    assert str(parse(DEFAULT)) == DEFAULT


@pytest.mark.parametrize(
    "value", ["", "balanced", "balanced:", "balanced:-1", "balanced:1.5", ":5", "200", "balanced:x"]
)
def test_parse_refuses(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(value)
    assert caught.value.hint


def test_parse_suggests() -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse("balance:20")
    assert "did you mean balanced" in caught.value.hint


def test_the_seed_decides() -> None:
    rows = examples(["a", "b"] * 20)
    keep = Keep("reservoir", 10)
    assert keep.select(rows, 1) == keep.select(rows, 1) != keep.select(rows, 2)
    assert Keep("balanced", 0).select(rows, 1) == []
    assert Keep("balanced", 5).select([], 1) == []
    assert sorted(Keep("balanced", 99).select(rows, 1), key=rows.index) == rows


@given(labels=st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), size=st.integers(1, 60), seed=st.integers())
def test_balanced_is_as_even_as_the_data_allow(labels: list[str], size: int, seed: int) -> None:
    chosen = Balanced().select(examples(labels), size, random.Random(seed))
    kept, there = Counter(labels[i] for i in chosen), Counter(labels)
    assert sum(kept.values()) == min(size, len(labels))
    most = max(kept.values())
    for label, count in there.items():
        assert kept[label] == count or kept[label] >= most - 1


def test_raw_texts_drive_out_no_label() -> None:
    rows = [*examples(["a"] * 10 + ["b"] * 10), *(Example("", f"a raw text {k}") for k in range(150))]
    kept = [rows[i] for i in Balanced().select(rows, 20, random.Random(0))]
    counts = Counter(row.answer if row.input else "text" for row in kept)
    assert sorted(counts.values()) == [6, 7, 7]
    assert few_answers(rows)
    assert not few_answers(rows[20:])


def test_balanced_draws_evenly_within_a_label() -> None:
    rows = examples(["a"] * 10 + ["b"] * 10)
    counts = Counter(i for seed in range(600) for i in Balanced().select(rows, 6, random.Random(seed)))
    assert all(180 * 0.7 < counts[i] < 180 * 1.3 for i in range(20))


def test_reservoir_gives_every_example_the_same_chance() -> None:
    rows = examples(["a"] * 18 + ["b"] * 2)
    counts = Counter(i for seed in range(800) for i in Reservoir().select(rows, 5, random.Random(seed)))
    assert all(200 * 0.7 < counts[i] < 200 * 1.3 for i in range(20))
