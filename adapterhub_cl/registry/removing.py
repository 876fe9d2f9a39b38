"""Erasing: taking versions and a task out of the index for good, and leaving no trace of them in its files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry import changes, files
from adapterhub_cl.registry.core import RegistryCore
from adapterhub_cl.registry.index import index_errors, open_sqlite
from adapterhub_cl.registry.names import parse_ref

_PATIENCE_S = 30.0  # for readers that keep the index's journal from being emptied


class Erasures(RegistryCore):
    """Taking something out of the index so that it is not there any more."""

    def known_since(self, task: str) -> str | None:
        """When the index first heard of a task (UTC, ISO 8601); None where it never did."""
        with self._index.reading() as query:
            times = [str(row[0]) for row in query("SELECT created_at FROM tasks WHERE name = :task", task=task)]
        times += [event.at for event in self.events() if event.detail.get("task") == task]
        return min(times, default=None)

    def deleted_refs(self) -> set[str]:
        """The versions of which only the number is kept."""
        with self._index.reading() as query:
            return {f"{n}@v{v}" for n, v in query("SELECT name, version FROM versions WHERE status = 'deleted'")}

    def index_files(self) -> list[Path]:
        """The index's own files; none where it is on a server."""
        file = self._index.file
        if file is None:
            return []
        return [path for end in ("", "-wal", "-shm", "-journal") if (path := file.with_name(file.name + end)).exists()]

    def index_texts(self) -> Iterator[str]:
        """Every row of an index on a server as text; none of one that has files of its own."""
        if self._index.file is not None:
            return
        from adapterhub_cl.registry import schema

        with self._index.reading() as query:
            for table in schema.metadata.sorted_tables:
                columns = ", ".join(column.name for column in table.columns)
                for row in query(f"SELECT {columns} FROM {table.name}"):
                    yield "\n".join(str(value) for value in row)

    def erase(
        self,
        task: str,
        gone: Mapping[str, str | None],
        serve: Mapping[str, str],
        detail: Mapping[str, Any],
    ) -> None:
        """Take a task and versions out of the index, in one transaction; may be done again.

        A version's row stays, emptied, so that its number is not used again.

        Args:
            gone: each version and what takes its place; aliases move there, or are dropped.
            serve: which version serves a task from now on.
            detail: of the line in the log; `tombstone` in it tells one removal from the next.
        """
        pairs = {_pair(ref): None if to is None else _pair(to) for ref, to in gone.items()}
        forgetting = self._forgetting_scores(refs=gone, tasks=[task])
        with changes.operation(), self._index.lock(), forgetting, self._write() as (connection, writes):
            writes.erase_versions(connection, pairs, "forget-task")
            writes.delete_task(connection, task)
            for other, ref in serve.items():
                writes.set_serving(connection, other, *_pair(ref))
            writes.empty_events(connection, [task, *gone])
            done = (e.detail.get("tombstone") for e in self.events(task) if e.verb == "forget-task")
            if detail["tombstone"] not in done:
                writes.add_event(connection, "forget-task", task, detail)

    def check_mirror(self) -> None:
        """Make sure that `aliases.json` says what the index says, and nothing of what was erased; copies that a rebuild
        put aside go.

        Raises:
            StorageError: the disk refused it.
        """
        from adapterhub_cl.registry import mirror

        with self._index.lock(), self._index.reading() as query:
            if mirror.is_stale(self.path, query):
                files.atomic_write_text(self.path / mirror.STATE, mirror.text(query))
            for copy in self.path.glob(f"{mirror.BROKEN}*"):  # unreadable, so nobody can tell what it holds of the task
                with files.storage_errors(copy):
                    copy.unlink(missing_ok=True)

    def scrub(self) -> None:
        """Write the index's file anew without what was deleted from it, and empty its journal.

        Raises:
            StorageError: the disk refused, or another process keeps reading from the journal.
        """
        file = self._index.file
        if file is None:
            return
        with self._index.lock(), index_errors(self._index.where), closing(open_sqlite(file)) as connection:
            connection.execute("PRAGMA secure_delete = ON")
            until = time.monotonic() + _PATIENCE_S
            connection.execute("VACUUM")
            while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > until:
                    raise StorageError(
                        f"another process keeps reading the index {file}, so its journal cannot be emptied",
                        "end it and try again",
                    )
                time.sleep(0.1)


def _pair(ref: str) -> tuple[str, int]:
    parsed = parse_ref(ref)
    assert parsed.version is not None
    return parsed.name, parsed.version
