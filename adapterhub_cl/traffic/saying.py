"""Reads what a user says of an answer: that it was right or wrong, or what would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.registry import Registry, check_name
from adapterhub_cl.traffic.journal import KeptAnswer, Said
from adapterhub_cl.traffic.masking import masked
from adapterhub_cl.types import BASE, CANARY, LATEST, PRODUCTION

WAYS = ("correct", "label", "answer", "thumb")
LONGEST = 100_000  # characters of a right answer
RESERVED = (BASE, "auto", PRODUCTION, LATEST, CANARY)
ALIKE = 0.8  # similarity from which the name of a new task is taken for a slip


def said_of(registry: Registry, kept: KeptAnswer, told: Mapping[str, Any], by: str = "") -> Said:
    """What was said of an answer, checked.

    Args:
        told: exactly one of `correct` (true or false), `label`, `answer` (the right text) and `thumb` (`up` or `down`),
            and optionally `task`, of which the question is; one that the hub does not know is a proposal.
        by: who says it.

    Raises:
        UsageError: none of these, several, or a value that cannot be used.
        UnknownNameError: a label that the task does not have.
    """
    given = [way for way in WAYS if told.get(way) is not None]
    if len(given) != 1:
        what = "nothing was said" if not given else f"{' and '.join(given)} are given together"
        raise UsageError(f"{what} of the answer {kept.id}", f"give one of {', '.join(WAYS)}")
    way, value = given[0], told[given[0]]
    named = told.get("task") or ""
    if not isinstance(named, str):
        raise UsageError(f"task is {named!r}, not a name", "give a text")
    task = check_name(named, "task") if named else kept.task
    if named in RESERVED:
        raise UsageError(f"{named!r} cannot be a task's name", "it names something else where models are named")
    if way == "correct":
        if not isinstance(value, bool):
            raise UsageError(f"correct is {value!r}", "give true or false")
        return Said(kept.id, value, None, task, by)
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST:
        raise UsageError(f"{way} is empty, too long, or no text", "give a text")
    if way == "thumb":
        if value not in ("up", "down"):
            raise UsageError(f"thumb is {value!r}", "give up or down")
        return Said(kept.id, value == "up", None, task, by)
    if not task:
        raise UsageError(
            "no task answered this, so it is not known what the right answer is of", 'name one: "task": "NAME"'
        )
    tasks = {one.name: one for one in registry.tasks()}
    known, value = tasks.get(task), value.strip()
    if named and known is None and (near := difflib.get_close_matches(named, tasks, n=1, cutoff=ALIKE)):
        raise UsageError(
            f"unknown task {named!r}; did you mean {near[0]!r}?",
            "a new task needs a name that is less like a known one",
        )
    if known is not None and known.kind == "choice":
        same = [label for label in known.labels if label.casefold() == value.casefold()]
        if value not in known.labels and len(same) != 1:
            raise UnknownNameError(f"label of {task}", value, known.labels)
        value = value if value in known.labels else same[0]
    elif way == "label" and known is not None:
        raise UsageError(f"{task} is a {known.kind} task and has no labels", "give the right answer: answer")
    else:
        value = masked(value)
    same_task = task == kept.task
    good = _same(value, kept.answer) if same_task else None
    return Said(kept.id, good, value, task, by, labelled=way == "label")


def _same(right: str, answer: str) -> bool:
    return " ".join(right.split()).casefold() == " ".join(answer.split()).casefold()
