"""Who answers: which task's prompt and labels, which version, and that version active on the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.canaries import Canary
from adapterhub_cl.types import BASE, AdapterRecord, Task

if TYPE_CHECKING:
    from adapterhub_cl.bases.loading import LoadedBase

HERE = 4096  # versions kept in memory


class ServingTable:
    """Which version serves which task, as the hub is now. For use by one thread.

    Attributes:
        serving: task → version.
        canaries: task → the version that answers a share of its conversations.
    """

    def __init__(self, registry: Registry, serving: dict[str, str] | None = None) -> None:
        self.registry = registry
        self.serving = registry.serving() if serving is None else serving
        self.canaries: Mapping[str, Canary] = {}
        self._records: dict[str, AdapterRecord] = {}
        self._tasks: dict[str, Task] = {}
        self._served: dict[str, Task] = {}

    def record(self, ref: str) -> AdapterRecord:
        """The version that a reference names.

        Raises:
            UnknownNameError: there is none.
        """
        if ref not in self._records:
            if len(self._records) >= HERE:
                self._records.clear()
            self._records[ref] = self.registry.get(ref)
        return self._records[ref]

    def task(self, name: str) -> Task:
        """A task as the hub describes it.

        Raises:
            UnknownNameError: no such task.
        """
        if name not in self._tasks:
            self._tasks[name] = self.registry.task(name)
        return self._tasks[name]

    def served(self, name: str) -> Task:
        """A task as the version that serves it learned it.

        Raises:
            UnknownNameError: no such task.
        """
        if name not in self._served:
            found = self.task(name)
            if name in self.serving:
                record = self.record(self.serving[name])
                # A version answers with the labels that it knows: a later update may have added some.
                found = task_of(self.registry, record) if record.task == name else found
            self._served[name] = found
        return self._served[name]

    def server(self, task: str) -> str:
        """The version that serves a task.

        Raises:
            UnknownNameError: no such task.
            AdapterError: no version serves it.
        """
        self.task(task)
        if task not in self.serving:
            records = self.registry.adapters(include_rejected=False)
            able = [r.ref for r in records if task in r.tasks and r.status == "active"]
            hint = f"cl-adapter promote {able[-1]} lets it answer" if able else "cl-adapter list shows what is there"
            raise AdapterError(f"no adapter serves the task {task!r}", hint)
        return self.serving[task]


def open_tasks(table: ServingTable, task: str | None, adapter: str | None, *, free: bool = False) -> list[str]:
    """The tasks among which a router has to choose; empty if the request leaves nothing open.

    Args:
        task, adapter: the names in the request.
        free: the request is for a written answer, which the base can give without a task.

    Raises:
        UnknownNameError: no such adapter.
        UsageError: the hub serves no task.
    """
    if task is not None:
        return []
    if adapter is not None and adapter != BASE:
        record = table.record(adapter)  # one that learned a task of its own answers in that one's form
        return list(record.tasks) if not record.task and len(record.tasks) > 1 else []
    if adapter == BASE and free:
        return []
    if not table.serving:
        raise UsageError("this hub has no adapters yet", "cl-adapter add-task NAME DATA trains one")
    return list(table.serving)


def refuse_router(
    among: Sequence[str], task: str | None, router: str | None, top_k: int = 1, options: Mapping[str, Any] | None = None
) -> None:
    """Raise where a router, or an option of one, is asked for and the request leaves nothing to route.

    Args:
        among: what `open_tasks` found.

    Raises:
        UsageError: names both.
    """
    if among or not (router is not None or top_k != 1 or options):
        return
    what = "router" if router is not None else "mixture of several" if top_k != 1 else "router's options"
    given, flag = (
        ("a task", "--task names the task") if task is not None else ("an adapter", "--adapter says who answers")
    )
    raise UsageError(f"both {given} and a {what}", f"{flag}, so that nothing is left to route")


def who_answers(
    table: ServingTable,
    task: str | None,
    adapter: str | None,
    routed: Sequence[tuple[str, float]] = (),
    *,
    free: bool = False,
) -> tuple[Task | None, dict[str, float]]:
    """Decides, for every verb and for the engine, which task's prompt is used and which versions answer.

    Args:
        task: its serving adapter answers; may be left out if the hub serves one task.
        adapter: forces the adapter; `base` is the base alone.
        routed: the tasks that a router chose, with their weights.
        free: see `open_tasks`.

    Returns:
        the task whose prompt and labels are used (None: the base without a task), and version → weight (empty: the base
        answers).

    Raises:
        UsageError: several tasks are possible and none is named, or the hub serves none.
        UnknownNameError: no such task or adapter.
        AdapterError: no version serves the task.
    """
    if not routed and task is None:
        among = open_tasks(table, task, adapter, free=free)
        if len(among) > 1:
            named = adapter is not None and adapter != BASE
            who = f"{table.record(str(adapter)).ref} answers for several" if named else f"this hub serves {len(among)}"
            raise UsageError(
                f"{who} tasks and nobody said which",
                f"add --task{'' if adapter else ' or --adapter'}; tasks: {', '.join(sorted(among))}",
            )
        routed = [(name, 1.0) for name in among]
    if task is not None:
        routed = [(task, 1.0)]
    if adapter == BASE:
        return (table.task(routed[0][0]) if routed else None), {}
    if adapter is not None:
        record = table.record(adapter)
        return (table.task(routed[0][0]) if routed else task_of(table.registry, record)), {record.ref: 1.0}
    mixture: dict[str, float] = {}
    for name, weight in routed:
        ref = table.server(name)
        mixture[ref] = mixture.get(ref, 0.0) + weight
    return table.served(routed[0][0]), mixture


def task_of(registry: Registry, record: AdapterRecord) -> Task:
    """The task as it was when this version was made."""
    spec = record.manifest.get("task_spec")
    if spec:
        found = Task.from_json(spec).limited(record)
        if found.max_length or not record.task:
            return found
        return replace(found, max_length=registry.task(record.task).max_length)
    return registry.task(record.task) if record.task else Task(record.name)


def tasks_of(registry: Registry, record: AdapterRecord) -> list[Task]:
    """Every task that a version answers: its own as it was when it was made, the others as they are now."""
    return [task_of(registry, record) if name == record.task else registry.task(name) for name in record.tasks]


@contextmanager
def answering(registry: Registry, base: LoadedBase, ref: str) -> Iterator[Any]:
    """The base with a version active, its files checked; `base` is the base alone.

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
