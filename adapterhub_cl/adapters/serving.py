"""Which version answers: the task whose prompt and labels are used, and the version that is active on the base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import BASE, AdapterRecord, Task

if TYPE_CHECKING:
    from adapterhub_cl.bases.loading import LoadedBase


def who_answers(registry: Registry, task: str | None, adapter: str | None) -> tuple[Task, str]:
    """The task whose prompt and labels are used, and the reference of the version that answers (or `base`).

    Args:
        task: its serving adapter answers; optional if the hub serves only one task.
        adapter: forces the adapter; `base` is the base alone.

    Raises:
        UsageError: there are several tasks and none was named, or there is no adapter.
        UnknownNameError: no such task or adapter.
    """
    if adapter is not None and adapter != BASE:
        record = registry.get(adapter)
        if task is None and not record.task and len(record.tasks) > 1:
            raise UsageError(
                f"{record.ref} answers several tasks, and none was named",
                f"add --task with one of: {', '.join(record.tasks)}",
            )
        return (registry.task(task) if task else task_of(registry, record)), record.ref
    serving = registry.serving()
    if task is None:
        if not serving:
            raise UsageError("this hub has no adapters yet", "cl-adapter add-task NAME DATA trains one")
        if len(serving) > 1 and adapter == BASE:
            raise UsageError(
                "the base needs a task's prompt and labels, and no task was named",
                f"add --task with one of: {', '.join(sorted(serving))}",
            )
        if len(serving) > 1:
            raise UsageError(
                f"this hub serves {len(serving)} tasks, and none was named",
                f"add --task or --adapter; tasks: {', '.join(sorted(serving))}",
            )
        task = next(iter(serving))
    chosen = registry.task(task)
    if adapter == BASE:
        return chosen, BASE
    if task not in serving:
        able = [r.ref for r in registry.adapters(include_rejected=False) if task in r.tasks and r.status == "active"]
        hint = f"cl-adapter promote {able[-1]} lets it serve" if able else "cl-adapter list shows the adapters"
        raise AdapterError(f"no adapter serves the task {task!r}", hint)
    record = registry.get(serving[task])
    # A version answers with the labels that it was trained on: a later update may have added some.
    return (task_of(registry, record) if record.task == task else chosen), record.ref


def task_of(registry: Registry, record: AdapterRecord) -> Task:
    """The task as it was when this version was made."""
    spec = record.manifest.get("task_spec")
    if spec:
        found = Task.from_json(spec).limited(record)
        if found.max_length or not record.task:
            return found
        return replace(found, max_length=registry.task(record.task).max_length)
    return registry.task(record.task) if record.task else Task(record.name)


@contextmanager
def answering(registry: Registry, base: LoadedBase, ref: str) -> Iterator[Any]:
    """The base with a version active, after checking its files; `base` is the base alone.

    Raises:
        IntegrityError: a file of the version is missing or changed.
        AdapterError: it does not fit the base.
    """
    if ref == BASE:
        yield base.model
        return
    from adapterhub_cl.adapters.as_served import as_served

    record = registry.get(ref)
    registry.check_files(record)
    with as_served(base, record.path) as model:
        yield model
