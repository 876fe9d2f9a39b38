"""What a user may say of an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from traffic_support import answer

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.traffic.saying import said_of
from adapterhub_cl.types import Task

TASKS = [Task("news", "choice", labels=("sports", "World")), Task("mail", "generation"), Task("yn", "choice")]
REGISTRY: Any = SimpleNamespace(tasks=lambda: TASKS)


@pytest.mark.parametrize(
    ("told", "good", "right"),
    [
        ({"correct": True}, True, None),
        ({"correct": False}, False, None),
        ({"thumb": "up"}, True, None),
        ({"thumb": "down"}, False, None),
        ({"label": "sports"}, True, "sports"),
        ({"label": " world "}, False, "World"),
        ({"answer": "World"}, False, "World"),
    ],
)
def test_the_ways_to_say_it(told: dict[str, Any], good: bool, right: str | None) -> None:
    said = said_of(REGISTRY, answer(1), told, "jane")
    assert (said.good, said.right, said.task, said.said_by) == (good, right, "news", "jane")


def test_a_written_answer_is_compared_ignoring_case_and_spacing_and_masked() -> None:
    kept = answer(1, task="mail", answer="Dear  Jane")
    assert said_of(REGISTRY, kept, {"answer": "dear jane"}).good is True
    said = said_of(REGISTRY, kept, {"answer": "write to a@b.de"})
    assert said.good is False
    assert said.right == "write to <email>"


def test_a_question_may_belong_to_another_task_or_to_a_new_one() -> None:
    kept = answer(1, task="", ref="base")
    assert said_of(REGISTRY, kept, {"label": "World", "task": "news"}).good is None
    new = said_of(REGISTRY, kept, {"label": "refund", "task": "tickets"})
    assert (new.task, new.right, new.good) == ("tickets", "refund", None)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"correct": True, "label": "sports"},
        {"label": ""},
        {"label": 3},
        {"correct": "yes"},
        {"thumb": "sideways"},
        {"label": "x", "task": "../../etc"},
        {"label": "x", "task": 5},
        {"label": "x", "task": "mail"},
        {"label": "x", "task": "base"},
        {"label": "x", "task": "newss"},  # a slip, and no new task
        {"answer": "y" * 100_001},
    ],
)
def test_what_cannot_be_used(told: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        said_of(REGISTRY, answer(1), told)


def test_an_unknown_label_is_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown label of news 'sport'") as told:
        said_of(REGISTRY, answer(1), {"label": "sport"})
    assert "sports" in told.value.hint
    with pytest.raises(UsageError, match="no task"):
        said_of(REGISTRY, answer(1, task=""), {"label": "sports"})
