"""The registry: one hub's adapters, versions, aliases, lineage and scores, on disk and in the index."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError, HubError, IntegrityError, StorageError, UsageError
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import changes, files, manifests
from adapterhub_cl.registry.aliasing import Aliases, ways_on
from adapterhub_cl.registry.canaries import Canaries
from adapterhub_cl.registry.drafts import Draft
from adapterhub_cl.registry.hubfile import BASE_PATH, FILE_NAME, HubFile, check_store_url
from adapterhub_cl.registry.index import HEAD
from adapterhub_cl.registry.names import check_local, check_name, is_outside
from adapterhub_cl.registry.postgres import check_url
from adapterhub_cl.registry.removing import Erasures
from adapterhub_cl.registry.samples import FILE_NAME as SAMPLES
from adapterhub_cl.registry.samples import SampleFiles
from adapterhub_cl.registry.scores import Scores
from adapterhub_cl.registry.usage import Counters
from adapterhub_cl.types import STATUSES, AdapterRecord, BaseInfo, Evaluation, Problem, Task

if TYPE_CHECKING:
    from adapterhub_cl.registry.checks import Garbage, Place

_INDEX = ("index.db", "index.db-wal", "index.db-shm", "index.db-journal")
_HALF_MADE = {"adapters", "aliases.json", "aliases.json.next", "runs", *_INDEX, ".lock"}


class Registry(Aliases, Canaries, Scores, SampleFiles, Erasures, Counters):
    """One hub. Make one with `create`, open one with `open`; it need not be closed.

    Attributes:
        path: the hub's directory.
        hub_file: the content of `hub.toml`.
    """

    # -- making and opening ----------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path | str,
        base: BaseInfo,
        defaults: Mapping[str, Any] | None = None,
        *,
        index_url: str | None = None,
        store_url: str | None = None,
    ) -> Registry:
        """Make a hub in a directory that is missing or empty, or join one that has its index on a server.

        `hub.toml` is written last, so after a crash `open` finds no hub, and `create` can be called again.

        Args:
            index_url: `postgresql://…` without a password; None keeps the index in the directory.
            store_url: where the versions are, if other machines are to reach them; the directory has copies then.

        Raises:
            HubError: there is already a hub, or the index on the server belongs to another one.
            UsageError: the directory contains something else, or a URL cannot be used.
            StorageError: the disk cannot be written, or the server cannot be used.
        """
        from adapterhub_cl.registry import joining, mirror, rebuilding

        path = check_local(path)
        _check_free(path)
        hub_file = HubFile(base=base, created_at=files.now(), defaults=dict(defaults or {})).beside(path)
        if index_url is not None:
            hub_file = replace(hub_file, index_url=check_url(index_url))
        if store_url is not None:
            hub_file = replace(hub_file, store_url=check_store_url(store_url))
        registry = cls(path, hub_file)
        if registry.shared is not None:
            joining.check_place(registry.shared, path)
        joining.look(registry._index, path, hub_file)
        with files.storage_errors(path):
            registry.adapters_dir.mkdir(parents=True, exist_ok=True)
            registry.runs_dir.mkdir(exist_ok=True)
        with registry._index.lock():
            _check_free(path)  # another process may have been faster
            if index_url is None:
                rebuilding.rebuild(path, registry._index, registry.adapters_dir)
            registry.hub_file = hub_file = joining.begin(registry._index, path, hub_file, registry.shared)
            with registry._index.reading() as query:
                mirror.write(path, query)
            hub_file.write(path)
        return registry

    @classmethod
    def open(cls, path: Path | str, base_path: str | None = None) -> Registry:
        """Open a hub. A missing index is rebuilt from the manifests, an outdated one is migrated (a read-only one is
        read as it is), and an interrupted removal of replay samples is completed.

        Args:
            base_path: where the base is, if not where `hub.toml` says; None uses $CL_ADAPTER_BASE_PATH.

        Raises:
            HubError: there is no hub, or a newer version made it.
            IntegrityError: the index is damaged.
            StorageError: the index cannot be opened.
        """
        path = check_local(path)
        registry = cls(path, HubFile.read(path))
        registry.base_path = os.environ.get(BASE_PATH, "") if base_path is None else base_path
        revision = registry._index.revision()
        if registry._index.file is None:
            registry._check_server(revision)
        if revision != HEAD:
            registry._index.check_known(revision)
            registry._make_index(revision)
        with suppress(StorageError, IntegrityError):  # a read-only hub can still be read; `verify` reports the rest
            if registry.finish_replacing() is not None:
                registry.hub_file = HubFile.read(path)  # the replacement may have set a budget
            registry.settle()
            registry.drop_erased_copies()
        return registry

    def _check_server(self, revision: str | None) -> None:
        """Raise if the database of an index on a server is blank, or belongs to another hub."""
        from adapterhub_cl.registry import joining

        if revision is None:
            raise HubError(
                f"the index {self._index.where} of {self.path} has no tables",
                "check [index] url in hub.toml; if the database was lost, restore its backup, or make a new index "
                "from the manifests: cl-adapter verify --rebuild-index",
            )
        self._index.check_known(revision)
        joining.check(self._index, self.hub_file)

    def _make_index(self, revision: str | None) -> None:
        if revision is not None:
            with suppress(StorageError):  # it can still be read; the first write tries again and reports the error
                self._index.migrate()
            return
        from adapterhub_cl.registry import rebuilding

        count = rebuilding.rebuild(self.path, self._index, self.adapters_dir, only_if_blank=True, shared=self.shared)
        rebuilding.LOG.info("%s had no index; created one from %d manifests", self.path, count)

    @classmethod
    def rebuild_at(cls, path: Path | str) -> int:
        """Rebuild the index of a hub that cannot be opened; see `rebuild`."""
        path = check_local(path)
        return cls(path, HubFile.read(path)).rebuild()

    def rebuild(self) -> int:
        """Rebuild the index from manifests, `aliases.json` and `evaluations.jsonl`, and swap it in.

        Returns:
            The number of versions in the new index.

        Raises:
            StorageError: the disk cannot be written; the old index is untouched.
        """
        from adapterhub_cl.registry import joining, rebuilding

        count = rebuilding.rebuild(self.path, self._index, self.adapters_dir, shared=self.shared)
        joining.reintroduce(self._index, self.path, self.hub_file)
        return count

    # -- writing versions ------------------------------------------------------------------------

    def new_draft(self, name: str) -> Draft:
        """A directory to write a new version's files into; use it as a context manager.

        Raises:
            UsageError: the name is not valid.
            StorageError: the disk cannot be written.
        """
        return Draft(name, self.adapters_dir / check_name(name))

    def publish(
        self,
        draft: Draft,
        manifest: Mapping[str, Any],
        *,
        edges: Sequence[tuple[str, str]] = (),
        evaluations: Sequence[Evaluation] = (),
        task: Task | None = None,
        serve: bool = True,
        move_latest: bool = True,
        verb: str = "publish",
        repeats: bool = True,
        number: int | None = None,
    ) -> AdapterRecord:
        """Make a draft the next version of its adapter: completely, or not at all.

        Unless its status is `rejected`, `latest` moves to the version and it starts to serve the task; a task whose
        serving version is pinned by its adapter's alias `production` keeps that one.

        Args:
            manifest: `kind`, `rank`, `status` (`active` or `rejected`) and whatever else is to be stored.
            edges: (parent, relation) pairs; parents are references, or a path or URL for `imported_from`, or the
                path or URL of a version of another hub.
            draft: what `new_draft` returned, with all files written.
            serve: let the version answer for its task.
            move_latest: point the alias `latest` to it.
            evaluations: scores measured when the version was made.
            task: the task it was made for; stored with it.
            verb: the word in the log, e.g. `add-task`.
            repeats: if the newest version is identical (imported or derived in the same way from the same inputs),
                return that one, so that a call that was killed can be repeated.
            number: the version's number, if it has one from elsewhere; it must never have been used here.

        Raises:
            UsageError: an unknown kind, status, relation or parent.
            AdapterError: the number is used, the draft is empty, contains a link or was already published, or a score
                is not finite.
            StorageError: the disk cannot be written; nothing was changed.
        """
        if task is not None:
            check_name(task.name, "task")
        manifests.check_relations(edges)
        outside = [relation == "imported_from" or is_outside(parent) for parent, relation in edges]
        resolved = [(p if out else self.get(p).ref, r) for (p, r), out in zip(edges, outside, strict=True)]
        from adapterhub_cl.registry import publishing

        version = publishing.publish(
            self._index,
            draft,
            manifest,
            edges=resolved,
            evaluations=evaluations,
            task=task,
            published={"verb": verb, "serve": serve, "move_latest": move_latest},
            repeats=repeats,
            number=number,
            shared=self.shared,
        )
        return self.get(f"{draft.name}@v{version}")

    def set_status(self, ref: str, status: str) -> AdapterRecord:
        """Change a version's status to `active` or `rejected`; `latest` and the serving table stay as they are.

        Raises:
            UsageError: unknown reference or status.
        """
        if status not in STATUSES[:2]:
            raise UsageError(f"unknown status {status!r}", f"known: {', '.join(STATUSES[:2])}; to delete, use delete")
        with self._write() as (connection, writes):
            record = self.get(ref)
            writes.set_status(connection, record.name, record.version, status)
            writes.add_event(connection, "status", record.ref, {"from": record.status, "to": status})
        return self.get(record.ref)

    def delete(self, ref: str, *, reason: str = "delete") -> AdapterRecord:
        """Mark a version deleted and drop its aliases, scores, edges, counters and serving rows.

        Its number is not used again. `latest` moves to the newest active version. The next `collect(garbage())`
        removes the directory.

        Returns:
            The record before the deletion.
        """
        with changes.operation(), self._index.lock():
            record = self.get(ref)
            with self._forgetting_scores(refs=[record.ref]), self._write() as (connection, writes):
                writes.delete_version(connection, record.name, record.version, reason)
                writes.add_event(connection, reason, record.ref, _ancestry(record))
        return record

    # -- defaults --------------------------------------------------------------------------------

    def set_default(self, key: str, value: Any) -> None:
        """Set an entry of [defaults] in `hub.toml`, or remove it (None).

        Raises:
            StorageError: the disk cannot be written; the old file is untouched.
        """
        with self._index.lock():
            self.hub_file = HubFile.read(self.path).with_default(key, value)
            self.hub_file.write(self.path)

    # -- health ----------------------------------------------------------------------------------

    def check_files(self, record: AdapterRecord) -> None:
        """Hash all files of a version, including its manifest; called before the version is loaded.

        Raises:
            IntegrityError: a file is missing or has changed; the message names it.
        """
        place = record.path  # fetched first, where it is in a shared store
        made_for = record.manifest.get("base", {}).get("fingerprint", self.base.fingerprint)
        if made_for != self.base.fingerprint:
            raise AdapterError(
                f"{record.ref} was made for another base (fingerprint {made_for[:12]}, this hub's is "
                f"{self.base.fingerprint[:12]})",
                "use it in a hub of its own base",
            )
        found = list(manifests.differences(place, record.manifest["files"]))
        if wrong := self._wrong_manifest(record):
            with suppress(StorageError):
                self.finish_replacing()  # removing samples rewrites the manifest
            wrong = self._wrong_manifest(record)
            found = [(manifests.FILE_NAME, wrong), *found] if wrong else found
        if any(relative == SAMPLES for relative, _ in found):
            found = self._differences_now(record)
        for relative, what in found:
            if not what.startswith("extra"):
                with self._index.reading() as query:
                    hint = ", or ".join(
                        ["see cl-adapter verify", *ways_on(query, self.versions_in, self.get(record.ref))]
                    )
                raise IntegrityError(f"{record.path / relative} of {record.ref}: {what}", hint)

    def _wrong_manifest(self, record: AdapterRecord) -> str:
        """What is wrong with a version's `manifest.json`, compared with the SHA-256 in the index; empty if nothing."""
        with self._index.reading() as query:
            sql = "SELECT manifest_sha256 FROM versions WHERE name = :name AND version = :version"
            rows = query(sql, name=record.name, version=record.version)
        path = record.path / manifests.FILE_NAME
        if path.is_symlink() or not path.is_file():
            return "missing"
        return (
            "" if rows and rows[0][0] == files.sha256_file(path) else "changed: it differs from the recorded manifest"
        )

    def _differences_now(self, record: AdapterRecord) -> list[tuple[str, str]]:
        """What differs from the current manifest: samples may have been removed since the record was read."""
        with suppress(StorageError):
            self.finish_replacing()
        return list(manifests.differences(record.path, self.get(record.ref).manifest["files"]))

    def verify(self, reporter: Reporter | None = None) -> list[Problem]:
        """Every problem found, each with its fix; hashes every file of the hub, and of its shared store."""
        from adapterhub_cl.registry import checks

        return checks.verify(self._place(), reporter)

    def repair(self, reporter: Reporter | None = None, *, hashes: bool = True) -> list[str]:
        """Fix what can be fixed without loss; returns one line for each fix.

        Args:
            hashes: read every file of a shared store, which may take long, to put changed ones back too.

        Adopts complete versions that have no rows, drops aliases and serving rows that name nothing, removes
        leftovers, rewrites `aliases.json`.
        """
        from adapterhub_cl.registry import checks

        return checks.repair(self._place(), reporter, hashes=hashes)

    def needed_by_runs(self) -> dict[str, str]:
        """Version → the unfinished run that continues from it or trains on top of it; see `run_checks`."""
        from adapterhub_cl.registry import run_checks

        return run_checks.needed_by_runs(self._place())

    def garbage(self, older_than_days: float = 7.0) -> list[Garbage]:
        """What may be removed: leftovers, unfinished runs of that age, and directories of deleted versions that no
        other unfinished run needs."""
        from adapterhub_cl.registry import checks

        return checks.garbage(self._place(), older_than_days)

    def collect(self, garbage: Sequence[Garbage]) -> int:
        """Remove what `garbage` found; returns the number of bytes freed."""
        from adapterhub_cl.registry import checks

        return checks.collect(self._place(), garbage)

    def _place(self) -> Place:
        from adapterhub_cl.registry.checks import Place

        return Place(self.path, self.adapters_dir, self._index, self.shared)


def _ancestry(record: AdapterRecord) -> dict[str, Any]:
    """What the log keeps of a deleted version, to tell later whether its descendants learned a task."""
    manifest = record.manifest
    kept: dict[str, Any] = {
        key: list(manifest[key]) for key in ("takes_over", "learned_from", "read_from") if key in manifest
    }
    kept["strategy"] = manifest.get("strategy", "")
    parents = [edge["parent"] for edge in manifest.get("lineage", ())]
    return {"kind": record.kind, "task": record.task, "created_at": record.created_at, "parents": parents, **kept}


def _check_free(path: Path) -> None:
    """Raise if a hub cannot be made here; a half-made one without adapters does not matter."""
    if (path / FILE_NAME).exists():
        raise HubError(f"there is already a hub at {path}", f"use it: cl-adapter --hub {path} list")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file", "name a directory that is missing or empty")
    there = {entry.name for entry in path.iterdir()} if path.exists() else set()
    foreign = {name for name in there if name not in _HALF_MADE and not name.startswith(files.TEMPORARY)}
    if foreign or any((path / "adapters").glob("*")):
        raise UsageError(f"{path} is neither empty nor a hub", "name a directory that is missing or empty")
