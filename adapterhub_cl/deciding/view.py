"""An engine's copy of the index: which version serves which task, read again after every commit."""

from __future__ import annotations

from adapterhub_cl.adapters.serving import task_of
from adapterhub_cl.errors import AdapterError
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.watching import Watch
from adapterhub_cl.types import AdapterRecord, Task

HERE = 4096  # versions and tasks that are cached between two changes of the index


class View:
    """The serving table, tasks and versions; for use in one thread.

    Attributes:
        serving: task → version.
        versions: reference → version, for all existing ones.
        generation: number of changes seen.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._watch = Watch(registry)
        self.serving: dict[str, str] = {}
        self.versions: dict[str, AdapterRecord] = {}
        self.generation = 0
        self._stale = True
        self._records: dict[str, AdapterRecord] = {}
        self._tasks: dict[str, Task] = {}

    def refresh(self) -> bool:
        """Check whether something was committed; returns whether there was."""
        self._stale = self._watch.changed() or self._stale
        if not self._stale:
            return False
        self.serving = self.registry.serving()
        self.versions = {record.ref: record for record in self.registry.adapters(all_versions=True)}
        self._stale = False  # only now, so that after a failed read the next check reads again
        self.generation += 1
        self._records.clear()
        self._tasks.clear()
        return True

    def record(self, ref: str) -> AdapterRecord:
        """The version that a reference names.

        Raises:
            UnknownNameError: there is no such version.
        """
        if ref in self.versions:
            return self.versions[ref]
        if ref not in self._records:
            if len(self._records) >= HERE:
                self._records.clear()
            self._records[ref] = self.registry.get(ref)
        return self._records[ref]

    def task(self, name: str) -> Task:
        """A task as the version that serves it knows it.

        Raises:
            UnknownNameError: no such task.
        """
        if name not in self._tasks:
            found = self.registry.task(name)
            if name in self.serving:
                record = self.record(self.serving[name])
                # A version answers with the labels that it was trained on: a later update may have added some.
                found = task_of(self.registry, record) if record.task == name else found
            self._tasks[name] = found
        return self._tasks[name]

    def server(self, task: str) -> str:
        """The version that serves a task.

        Raises:
            UnknownNameError: no such task.
            AdapterError: no version serves it.
        """
        self.task(task)
        if task not in self.serving:
            raise AdapterError(f"no adapter serves the task {task!r}", "cl-adapter promote NAME lets one serve it")
        return self.serving[task]

    def close(self) -> None:
        self._watch.close()
