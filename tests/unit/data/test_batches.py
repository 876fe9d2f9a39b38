"""The plan of an epoch and the padding of its batches."""

from __future__ import annotations

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.data.batches import answers_in, by_length, collate, plan_epoch, to_left_padded
from adapterhub_cl.data.tokenise import Tokens

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=120)
ids = st.lists(st.integers(3, 299), min_size=1, max_size=9).map(tuple)
examples_of = st.lists(st.builds(Tokens, ids, ids), min_size=1, max_size=6)


def padding(sizes: list[int], batches: list[list[int]]) -> int:
    return sum(max(sizes[i] for i in batch) * len(batch) - sum(sizes[i] for i in batch) for batch in batches)


@given(sizes=lengths, batch=st.integers(1, 9), seed=st.integers(0, 99), epoch=st.integers(0, 9), pool=st.integers(1, 5))
def test_every_index_once_in_batches_of_the_size(
    sizes: list[int], batch: int, seed: int, epoch: int, pool: int
) -> None:
    plan = plan_epoch(sizes, batch, seed, epoch, pool)
    assert sorted(i for part in plan for i in part) == list(range(len(sizes)))
    assert len(plan) == -(-len(sizes) // batch)
    short = [part for part in plan if len(part) != batch]
    assert len(short) == (1 if len(sizes) % batch else 0)
    assert all(len(part) < batch for part in short)
    assert plan == plan_epoch(sizes, batch, seed, epoch, pool)


def test_epochs_and_seeds_are_other_orders() -> None:
    sizes = [k % 7 + 1 for k in range(60)]
    plans = [plan_epoch(sizes, 4, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(plan) for plan in plans}) == 9
    assert plans[0] != plan_epoch(sizes, 4, 0, 0, pool=1)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    plan = plan_epoch(list(range(1, 50)), 4, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert plan_epoch(list(range(1, 50)), 4, 0, 0) == plan


def test_buckets_save_padding() -> None:
    draw = random.Random(5)
    sizes = [draw.randrange(1, 100) for _ in range(512)]
    order = torch.randperm(512, generator=torch.Generator().manual_seed(0)).tolist()
    unbucketed = [order[k : k + 8] for k in range(0, 512, 8)]
    assert padding(sizes, plan_epoch(sizes, 8, 0, 0)) < 0.2 * padding(sizes, unbucketed)


@given(examples=examples_of, more=st.integers(1, 3))
def test_collate_pads_on_the_right_and_labels_answers_only(examples: list[Tokens], more: int) -> None:
    indices = [k % len(examples) for k in range(len(examples) * more)][::-1]
    batch = collate(examples, indices, pad_id=0)
    longest = max(len(examples[i]) for i in indices)
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape == (len(indices), longest)
    assert batch.indices == tuple(indices)
    for row, index in enumerate(indices):
        prompt, answer = examples[index].prompt, examples[index].answer
        rest = longest - len(prompt) - len(answer)
        assert batch.input_ids[row].tolist() == [*prompt, *answer, *[0] * rest]
        assert batch.attention_mask[row].tolist() == [1] * (longest - rest) + [0] * rest
        assert batch.labels[row].tolist() == [*[-100] * len(prompt), *answer, *[-100] * rest]
    assert batch.tokens == sum(len(examples[i]) for i in indices)
    assert answers_in(examples, indices) == int((batch.labels != -100).sum())


@given(examples=examples_of, room=st.integers(0, 64))
def test_few_lengths_where_there_is_room_and_never_more_than_that(examples: list[Tokens], room: int) -> None:
    tight, wide = (collate(examples, range(len(examples)), 0, room=r) for r in (0, room))
    own, width = tight.input_ids.shape[1], wide.input_ids.shape[1]
    assert width % 8 == 0 or width == max(own, room)
    assert own <= width < own + 8
    assert width <= max(own, room)
    assert torch.equal(wide.input_ids[:, :own], tight.input_ids)
    assert not wide.attention_mask[:, own:].any()
    assert (wide.labels[:, own:] == -100).all()


@given(prompts=st.lists(ids, min_size=1, max_size=6))
def test_left_padding(prompts: list[tuple[int, ...]]) -> None:
    padded = to_left_padded(prompts, 0)
    longest = max(len(p) for p in prompts)
    for row, prompt in enumerate(prompts):
        rest = longest - len(prompt)
        assert padded["input_ids"][row].tolist() == [*[0] * rest, *prompt]
        assert padded["attention_mask"][row].tolist() == [*[0] * rest, *[1] * len(prompt)]


@given(sizes=lengths, batch=st.integers(1, 9))
def test_evaluation_takes_the_longest_first(sizes: list[int], batch: int) -> None:
    batches = by_length(sizes, batch)
    flat = [i for part in batches for i in part]
    assert sorted(flat) == list(range(len(sizes)))
    assert [sizes[i] for i in flat] == sorted(sizes, reverse=True)
    assert all(len(part) == batch for part in batches[:-1])
