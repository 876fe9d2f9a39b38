"""One call of `learn`: every task's next step, one call at a time in a hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import (
    AdapterHubError,
    BaseModelError,
    LearnsElsewhere,
    StorageError,
    TrainingError,
    TrainingInterrupted,
    UnknownNameError,
)
from adapterhub_cl.loop.learn_options import LearnOptions
from adapterhub_cl.loop.learn_steps import LearnStep, LearnTask
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.traffic.journal import LEARN_LOCK, Journal
from adapterhub_cl.traffic.lesson_book import FAILED, Lessons
from adapterhub_cl.training.runs import acquire, held


def learn(hub: Hub, options: LearnOptions, settings: Mapping[str, Any], *, dry_run: bool = False) -> list[LearnStep]:
    """Take the next step for every task that something has gathered for, or that has a lesson which has not ended.

    A step that fails for one task says so and does not stop the others; its lesson is tried again by the next call.

    Raises:
        UnknownNameError: nothing has gathered for the task that was named.
        LearnsElsewhere: another process learns from this hub's traffic.
        StorageError: the disk refuses; the same call goes on.
    """
    journal = Journal(hub.registry.path)
    open_ones = {lesson.task for lesson in Lessons(journal).all(opened=True)}
    names = {task for task, count in journal.counts().items() if task and count["judged"]} | open_ones
    if options.task and options.task not in names:
        names |= {one.name for one in hub.registry.tasks()}
        if options.task not in names:
            raise UnknownNameError("task", options.task, names, "cl-adapter inbox shows what has gathered")
        return [LearnStep(options.task, "waiting", "nothing was said of its answers yet")]
    chosen = [options.task] if options.task else sorted(names)
    work = LearnTask(hub, journal, options, settings)
    if dry_run:
        return [work.run(task, dry_run=True) for task in chosen]
    with alone(hub.registry.path):
        return [_step(work, task) for task in chosen]


def _step(work: LearnTask, task: str) -> LearnStep:
    """A task's next step. An error that concerns this task alone leaves its lesson as it is, and the others go on."""
    try:
        return work.run(task)
    except (StorageError, TrainingInterrupted, BaseModelError):
        raise
    except AdapterHubError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return LearnStep(task, FAILED, f"{error.message}{hint}; the next call tries again")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `learn`.

    Raises:
        LearnsElsewhere: another process holds it.
    """
    try:
        with storage_errors(folder):
            lock = acquire(
                folder / LEARN_LOCK,
                f"another process learns from the traffic of {folder}",
                "it goes on there; nothing is lost",
            )
    except TrainingError as error:
        raise LearnsElsewhere(error.message, error.hint) from error
    with held(lock):
        yield


def watch(once: Callable[[], Any], every: float, stop: Callable[[], bool] = lambda: False) -> None:
    """Call `once` now, and again `every` so many seconds after it returned, until `stop` says so."""
    while True:
        once()
        ends = time.monotonic() + every
        while time.monotonic() < ends:
            if stop():
                return
            time.sleep(min(1.0, max(0.0, ends - time.monotonic())))
        if stop():
            return
