"""Shared by several policies: grouping examples by answer, and taking turns among groups."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub_cl.types import Example


def by_answer(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of the examples, one list for each answer, in order of first occurrence. Raw texts are one list together:
    as one class each they would displace a task's labels."""
    groups: dict[str | None, list[int]] = {}
    for i, example in enumerate(examples):
        groups.setdefault(None if example.is_raw else example.answer, []).append(i)
    return list(groups.values())


def few_answers(examples: Sequence[Example]) -> bool:
    """Whether the answers are like labels: on average each occurs at least twice."""
    asked = [example for example in examples if not example.is_raw]
    return bool(asked) and 2 * len({example.answer for example in asked}) <= len(asked)


def in_turn(queues: Sequence[Sequence[int]], size: int) -> list[int]:
    """The first of each queue, then the second of each, …, at most `size`: every prefix is balanced."""
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)][:size]
