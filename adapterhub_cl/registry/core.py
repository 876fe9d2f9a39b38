"""The base class of every part of the registry: the opened hub, its reads, and the one way to write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.registry import changes, queries
from adapterhub_cl.registry.hubfile import HubFile
from adapterhub_cl.registry.names import check_name
from adapterhub_cl.registry.postgres import open_index
from adapterhub_cl.registry.queries import Event
from adapterhub_cl.registry.shared_store import SharedStore
from adapterhub_cl.types import AdapterRecord, BaseInfo, Edge

if TYPE_CHECKING:
    from sqlalchemy import Connection

# `writes`, `mirror`, `checks`, `rebuilding` and `publishing` import SQLAlchemy, so they are imported only where they
# are used: `cl-adapter list` must not pay for them.


class RegistryCore:
    """An opened hub: reading it, and writing to it in one transaction."""

    def __init__(self, path: Path, hub_file: HubFile) -> None:
        self.path, self.hub_file = path, hub_file
        self.adapters_dir = hub_file.store_path(path)
        self.shared: SharedStore | None = None
        if hub_file.is_shared:
            self.shared = SharedStore(hub_file.store_url, self.adapters_dir, self._manifest_now, lambda: self.hub_file)
        self.versions_in: queries.Store = self.shared or self.adapters_dir
        self.runs_dir = path / "runs"
        self._index = open_index(path, hub_file.index_url)
        self._stopped: Event | None = None  # a change that was committed by a process killed before it reported that
        self.base_path = ""  # where the base is now, if not where hub.toml says
        self.bring: Callable[[Any, str], str] | None = None  # pulls what a reference to a store names

    def _manifest_now(self, name: str, version: int) -> str | None:
        """The text of a version's manifest in the index; None if it has been deleted."""
        sql = "SELECT manifest FROM versions WHERE name = :name AND version = :version AND status <> 'deleted'"
        with self._index.reading() as query:
            rows = query(sql, name=name, version=version)
        return str(rows[0][0]) if rows else None

    def check_store(self) -> None:
        """Raise before long work whose version could not be published, because the shared store is not there.

        Raises:
            StorageError: it is not there, or cannot be reached.
            HubError: it is the store of another hub.
        """
        if self.shared is not None:
            self.shared.check_mine()

    @property
    def base(self) -> BaseInfo:
        """The base of the hub and its current location: see `adapterhub_cl.registry.hubfile`."""
        return self.hub_file.base_at(self.path, self.base_path)

    def adapters(self, all_versions: bool = False, *, include_rejected: bool = True) -> list[AdapterRecord]:
        """Every adapter at its latest version (or all versions), sorted by name, without deleted ones.

        An adapter that has only rejected versions appears with the newest of them.
        """
        with self._index.reading() as query:
            return queries.adapters(
                query, self.versions_in, all_versions=all_versions, include_rejected=include_rejected
            )

    def current(self) -> list[AdapterRecord]:
        """The versions that matter now, sorted by name and version: of each adapter those that serve a task, its
        `latest`, and its newest accepted one (which may have been rolled back).

        An adapter that has only rejected versions appears with the newest of them.
        """
        with self._index.reading() as query:
            return queries.current(query, self.versions_in)

    def get(self, ref: str) -> AdapterRecord:
        """The version that a reference names.

        Args:
            ref: `news` (its latest), `news@v2`, `news@production`, an alias that only one adapter has, or a version in
                a store, such as `hf://owner/repo/news@v2`, which is pulled first.

        Raises:
            UnknownNameError: no such adapter, version or alias; the hint has the nearest names or the list.
            UsageError: the text is not a reference, or it is an alias that several adapters have.
            AdapterError: the adapter has no accepted version.
        """
        ref = self.local(ref)
        with self._index.reading() as query:
            return queries.find(query, self.versions_in, ref)

    def local(self, ref: str) -> str:
        """A reference to a version of this hub: of one to a store, after that was pulled.

        Raises:
            UsageError: this process pulls nothing by reference.
        """
        if "://" not in ref and not ref.startswith("/"):
            return ref
        if self.bring is None:
            raise UsageError(f"{ref[:200]!r} is no version of this hub", "pull it first: cl-adapter pull TARGET NAME")
        return self.bring(self, ref)

    def versions(self, name: str) -> list[AdapterRecord]:
        """All versions of an adapter, oldest first.

        Raises:
            UnknownNameError: no such adapter.
        """
        with self._index.reading() as query:
            if found := queries.versions(query, self.versions_in, check_name(name)):
                return found
            raise UnknownNameError("adapter", name, queries.adapter_names(query), "list all: cl-adapter list")

    def lineage(self, ref: str | None = None) -> list[Edge]:
        """All edges from a version to its ancestors, then to its descendants, nearest first; all edges if no `ref`."""
        ref = None if ref is None else self.local(ref)
        with self._index.reading() as query:
            return queries.lineage(query, None if ref is None else queries.find(query, self.versions_in, ref).ref)

    def events(self, name: str | None = None, limit: int | None = None) -> list[Event]:
        """The log, newest first; optionally only the entries of one adapter (all its versions), version or task."""
        with self._index.reading() as query:
            return queries.events(query, name, limit)

    def add_event(self, verb: str, ref: str = "", detail: Mapping[str, Any] | None = None) -> None:
        """Add an entry to the log; the detail must be plain JSON."""
        with self._write(mirrored=False) as (connection, writes):
            writes.add_event(connection, verb, ref, detail)

    @contextmanager
    def _write(self, *, mirrored: bool = True) -> Iterator[tuple[Connection, Any]]:
        """One write transaction and the functions that write; `aliases.json` is updated after the commit."""
        from adapterhub_cl.registry import mirror, writes

        with changes.operation(), self._index.lock():
            self._index.migrate()  # the hub was read-only when it was opened
            with mirror.following(self.path, self._index) if mirrored else self._index.writing() as connection:
                yield connection, writes

    def settle(self) -> None:
        """Make the files beside the index match it again after an interrupted change. Costs two file checks if there
        was none; does nothing while another process is writing."""
        if not any((self.path / f"{name}.next").exists() for name in ("aliases.json", "evaluations.jsonl")):
            return
        from adapterhub_cl.registry import mirror

        with self._index.lock(timeout=0), self._index.reading() as query:
            if mirror.is_unsettled(self.path):
                if mirror.is_committed(self.path, query):
                    self._stopped = next(iter(queries.events(query, None, 1)), None)
                mirror.settle(self.path, query)

    def _forgetting_scores(
        self, *, refs: Collection[str] = (), tasks: Collection[str] = ()
    ) -> AbstractContextManager[None]:
        """A block that removes scores of versions, or on tasks, from the index; their lines in the file go after it."""
        from adapterhub_cl.registry import score_file

        return score_file.forgetting(self.path, refs=refs, tasks=tasks)
