"""Scores, tasks and the serving table of a hub."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub_cl.errors import UnknownNameError
from adapterhub_cl.registry import changes, files, manifests, queries
from adapterhub_cl.registry.core import RegistryCore
from adapterhub_cl.registry.names import check_name
from adapterhub_cl.registry.queries import StoredEvaluation
from adapterhub_cl.types import AdapterRecord, Evaluation, Task


class Scores(RegistryCore):
    def add_evaluations(self, ref: str, evaluations: Sequence[Evaluation]) -> None:
        """Record scores that were measured after the version was made.

        Raises:
            AdapterError: a score that is not a finite number.
        """
        manifests.check_scores(evaluations)
        from adapterhub_cl.registry import score_file

        with changes.operation(), self._index.lock():
            record, at = self.get(ref), files.now()
            added = [StoredEvaluation(record.ref, at, e) for e in evaluations]
            with score_file.adding(self.path, added), self._write(mirrored=False) as (connection, writes):
                writes.add_evaluations(connection, record.name, record.version, evaluations, at)

    def evaluations(self, ref: str | None = None, task: str | None = None) -> list[StoredEvaluation]:
        """Recorded scores in the order they were recorded, optionally of one version and on one task."""
        ref = None if ref is None else self.local(ref)
        with self._index.reading() as query:
            record = None if ref is None else queries.find(query, self.versions_in, ref)
            name, version = (None, None) if record is None else (record.name, record.version)
            return queries.evaluations(query, name, version, task)

    def tasks(self) -> list[Task]:
        """All tasks, sorted by name."""
        with self._index.reading() as query:
            return queries.tasks(query)

    def task(self, name: str) -> Task:
        """One task.

        Raises:
            UnknownNameError: no such task.
        """
        known = {task.name: task for task in self.tasks()}
        if name not in known:
            raise UnknownNameError("task", name, known)
        found = known[name]
        if not found.max_length:  # stored before limits were part of a task
            for record in self.adapters():
                if record.task == name:
                    found = found.limited(record)
        return found

    def put_task(self, task: Task) -> None:
        """Add a task, or replace its description."""
        check_name(task.name, "task")
        with self._write() as (connection, writes):
            writes.put_task(connection, task)

    def drop_task(self, name: str) -> None:
        """Remove a task: its description, its serving row and all scores on it; its adapters stay.

        Raises:
            UnknownNameError: no such task.
        """
        self.task(name)
        forgetting = self._forgetting_scores(tasks=[name])
        with changes.operation(), self._index.lock(), forgetting, self._write() as (connection, writes):
            writes.delete_task(connection, name)
            writes.add_event(connection, "drop-task", name)

    def serving(self) -> dict[str, str]:
        """The serving table: task → the version that serves it, as `name@vN`."""
        with self._index.reading() as query:
            return queries.serving(query)

    def serve(self, task: str, ref: str) -> AdapterRecord:
        """Let a version serve a task, even if another version is pinned.

        Raises:
            UnknownNameError: no such task or version.
        """
        ref = self.local(ref)
        with self._write() as (connection, writes):
            self.task(task)
            record = self.get(ref)
            writes.set_serving(connection, task, record.name, record.version)
            writes.add_event(connection, "serve", record.ref, {"task": task})
        return record
