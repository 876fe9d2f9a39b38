"""Erasing: removing versions and a task from the index for good, without traces in its files."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry import changes, drafts, files
from adapterhub_cl.registry.core import RegistryCore
from adapterhub_cl.registry.index import index_errors, open_sqlite
from adapterhub_cl.registry.names import parse_ref
from adapterhub_cl.registry.postgres import PostgresIndex
from adapterhub_cl.registry.shared_store import LIVE_MANIFESTS, needed_files

_PATIENCE_S = 30.0  # how long to wait for readers that keep the write-ahead log in use


class Erasures(RegistryCore):
    """Removing something from the index so that its files contain no trace of it."""

    def known_since(self, task: str) -> str | None:
        """When the index first recorded a task (UTC, ISO 8601); None if it never did."""
        with self._index.reading() as query:
            times = [str(row[0]) for row in query("SELECT created_at FROM tasks WHERE name = :task", task=task)]
        times += [event.at for event in self.events() if event.detail.get("task") == task]
        return min(times, default=None)

    def deleted_refs(self) -> set[str]:
        """The versions of which only the number is left."""
        with self._index.reading() as query:
            return {f"{n}@v{v}" for n, v in query("SELECT name, version FROM versions WHERE status = 'deleted'")}

    def index_files(self) -> list[Path]:
        """The index's own files; none if it is on a server."""
        file = self._index.file
        if file is None:
            return []
        return [path for end in ("", "-wal", "-shm", "-journal") if (path := file.with_name(file.name + end)).exists()]

    def index_texts(self) -> Iterator[str]:
        """Every row of an index on a server as text; nothing for an index that has files of its own."""
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
        """Remove a task and versions from the index, in one transaction; may be repeated.

        A version's row stays, emptied, so that its number is not used again.

        Args:
            gone: each version and its replacement; aliases move to the replacement, or are dropped.
            serve: which version serves a task from now on.
            detail: for the log entry; its `tombstone` identifies this removal.
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

    def remove_files(self, refs: Collection[str]) -> None:
        """Delete the files of versions whose rows are erased: here and, where it is shared, in the store. There, every
        other deleted version goes too: its files may hold rows of the task, and other machines cannot look for them.

        Raises:
            StorageError: the disk or the store cannot be written; may be called again.
        """
        if self.shared is not None:
            with self._index.lock(), self._index.reading() as query:
                needed = needed_files(row[0] for row in query(LIVE_MANIFESTS))
                live = set(query("SELECT name, version FROM versions WHERE status <> 'deleted'"))
                deleted = set(query("SELECT name, version FROM versions WHERE status = 'deleted'"))
                for name, version in sorted(self.shared.versions() & (deleted | {_pair(ref) for ref in refs}) - live):
                    self.shared.drop(name, version, needed)
        for ref in refs:
            place = self.adapters_dir / ref.replace("@", "/")
            files.remove_tree(place)
            with suppress(OSError):
                place.parent.rmdir()  # succeeds only if empty
            drafts.fault("version removed")

    def drop_erased_copies(self) -> None:
        """Delete this machine's copies of versions that another machine has erased; does nothing without a shared
        store."""
        if self.shared is None or not self.adapters_dir.is_dir():
            return
        here = {(path.parent.name, path.name) for path in self.adapters_dir.glob("*/v*")}
        with self._index.reading() as query:
            erased = query("SELECT name, version FROM versions WHERE status = 'deleted' AND manifest_sha256 = ''")
        for name, version in erased:
            if (name, f"v{version}") in here:
                files.remove_tree(self.adapters_dir / name / f"v{version}")

    def check_mirror(self) -> None:
        """Make sure that `aliases.json` matches the index and contains nothing of what was erased; copies that a
        rebuild has set aside are deleted.

        Raises:
            StorageError: the disk cannot be written.
        """
        from adapterhub_cl.registry import mirror

        with self._index.lock(), self._index.reading() as query:
            if mirror.is_stale(self.path, query):
                files.atomic_write_text(self.path / mirror.STATE, mirror.text(query))
            for copy in self.path.glob(f"{mirror.BROKEN}*"):  # unreadable, so it may contain anything of the task
                with files.storage_errors(copy):
                    copy.unlink(missing_ok=True)

    def scrub(self) -> None:
        """Rewrite the index's file without deleted content, and empty its write-ahead log; on a server, rewrite the
        tables. The server's own log, its replicas and its backups are not touched.

        Raises:
            StorageError: the disk cannot be written, or another process keeps reading the write-ahead log.
        """
        if isinstance(self._index, PostgresIndex):
            self._index.rewrite_tables(_PATIENCE_S)
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
                        f"another process keeps reading the index {file}, so deleted rows stay in its journal",
                        "stop that process and try again",
                    )
                time.sleep(0.1)


def _pair(ref: str) -> tuple[str, int]:
    parsed = parse_ref(ref)
    assert parsed.version is not None
    return parsed.name, parsed.version
