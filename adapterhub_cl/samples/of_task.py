"""The replay samples of a task, in whichever version they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.kept import kept_samples
from adapterhub_cl.types import AdapterRecord, Example, Task


@dataclass(frozen=True)
class TaskSamples:
    """Replay samples of one task.

    Attributes:
        record: the version that stores them.
        max_length: maximum length of its examples in tokens.
    """

    task: Task
    record: AdapterRecord
    examples: Sequence[Example]
    max_length: int


def samples_of(registry: Registry, task: str, first: AdapterRecord | None = None) -> TaskSamples | None:
    """The samples of a task: those of `first`, otherwise of its newest version that has any; None if there are none.

    Args:
        first: the version to look at first, if the task is its own.
    """
    own = [r for r in registry.adapters(all_versions=True, include_rejected=False) if r.task == task]
    own.sort(key=lambda record: record.created_at, reverse=True)
    if first is not None and first.task == task:
        own.insert(0, first)
    for record in own:
        registry.check_files(record)
        if found := kept_samples(record):
            return TaskSamples(registry.task(task), record, found, length_of(record))
    return None


def length_of(record: AdapterRecord) -> int:
    """The maximum length in tokens of a version's training examples."""
    settings = record.training.get("settings") or {}
    return int(settings.get("max_length") or 512)
