"""Aliases: the part of the registry that records which version a movable name points to, and rolls it back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from adapterhub_cl.errors import AdapterError, UnknownNameError, UsageError
from adapterhub_cl.registry import queries
from adapterhub_cl.registry.core import RegistryCore
from adapterhub_cl.registry.index import Query
from adapterhub_cl.registry.names import check_alias, check_name, parse_ref
from adapterhub_cl.registry.queries import AliasMove
from adapterhub_cl.types import LATEST, PRODUCTION, AdapterRecord, Task

_LOG = logging.getLogger("adapterhub_cl")


class Aliases(RegistryCore):
    def aliases(self) -> dict[str, dict[str, int]]:
        """The aliases of every adapter: adapter → alias → version."""
        with self._index.reading() as query:
            return queries.aliases(query)

    def alias_history(self, name: str, alias: str) -> list[AliasMove]:
        """Every move of one alias of one adapter, oldest first."""
        with self._index.reading() as query:
            return queries.alias_history(query, check_name(name), check_alias(alias))

    def set_alias(
        self, ref: str, alias: str, *, reason: str = "alias", detail: Mapping[str, Any] | None = None
    ) -> AdapterRecord:
        """Point an alias of the version's adapter to the version; `production` also moves its task's serving row.

        Args:
            detail: plain JSON, recorded in the log entry.

        Raises:
            UsageError: the reference is unknown, or `alias` is not a valid alias name.
        """
        check_alias(alias)
        ref = self.local(ref)
        with self._write() as (connection, writes):
            record = self.get(ref)
            writes.move_alias(connection, record.name, alias, record.version, reason)
            if alias == PRODUCTION and record.task:
                writes.set_serving(connection, record.task, record.name, record.version)
            writes.add_event(connection, reason, record.ref, {"alias": alias, **(detail or {})})
        return self.get(record.ref)

    def promote(self, ref: str) -> AdapterRecord:
        """Let a version serve all its tasks and point `production` to it, in one transaction.

        A version that was rejected when it was made becomes active, and what publishing would have done is done now:
        the task takes over its prompt settings, unless a label would be lost, and `latest` moves to it unless a newer
        version is active.
        Raises:
            UnknownNameError: no such version.
            StorageError: the disk cannot be written; nothing was changed.
        """
        ref = self.local(ref)
        with self._write() as (connection, writes):
            record = self.get(ref)
            with self._index.reading() as query:
                served = queries.serving(query)
                tasks = {task.name: task for task in queries.tasks(query)}
            if record.status == "rejected":
                writes.set_status(connection, record.name, record.version, "active")
                writes.add_event(connection, "status", record.ref, {"from": record.status, "to": "active"})
                spec = record.manifest.get("task_spec")
                if spec and (record.task not in tasks or set(tasks[record.task].labels) <= set(spec["labels"])):
                    writes.put_task(connection, Task.from_json(spec))
                if writes.newest_active(connection, record.name) == record.version:
                    writes.move_alias(connection, record.name, LATEST, record.version, "promote")
                    writes.add_event(connection, "promote", record.ref, {"alias": LATEST})
            before = {task: served[task] for task in record.tasks if served.get(task, record.ref) != record.ref}
            writes.move_alias(connection, record.name, PRODUCTION, record.version, "promote")
            for task in record.tasks:
                writes.set_serving(connection, task, record.name, record.version)
            writes.add_event(connection, "promote", record.ref, {"alias": PRODUCTION, "served_before": before})
        return self.get(record.ref)

    def drop_alias(self, name: str, alias: str) -> None:
        """Remove an alias; its history stays.

        Raises:
            UnknownNameError: the adapter has no such alias.
        """
        with self._write() as (connection, writes):
            known = self.aliases().get(check_name(name), {})
            if alias not in known:
                raise UnknownNameError(f"alias of {name}", alias, known)
            writes.drop_alias(connection, name, alias, "drop")
            writes.add_event(connection, "drop-alias", f"{name}@v{known[alias]}", {"alias": alias})

    def rollback(self, what: str) -> tuple[AdapterRecord, AdapterRecord]:
        """Move an alias back to its previous version; each further call goes back one more step.

        If an earlier rollback was killed after it moved the alias, the next call only finishes it and logs that.

        Rolling back `production` also moves the serving row of the version's task, and of the tasks that both
        versions took over. Rolling back `latest` does the same, unless `production` decides what serves the task. If
        `promote` gave `production` to the adapter's first version, the rollback removes it, and the tasks go back to
        the versions that served them before. An alias that was set only once is removed too; without `production` a
        task is served by its latest version, or by the version that another adapter's `production` names.

        Args:
            what: `name@alias`, or an alias that only one adapter has.

        Returns:
            The version that the alias named before, and the one it names now (or that serves the first task again).

        Raises:
            UnknownNameError: no such alias.
            UsageError: several adapters have the alias.
            AdapterError: there is no earlier version.
        """
        if (moved := self._moved_already(what)) is not None:
            return moved
        with self._write() as (connection, writes):
            with self._index.reading() as query:
                name, alias = self._alias(query, what)
                before = queries.find(query, self.versions_in, f"{name}@{alias}")
                served = queries.serving(query)
                earlier = previous(query, self.versions_in, before, alias)
                untouched = self._set_once(query, name, alias)
                given_back = self._before_promotion(query, before, served) if earlier is None else {}
            if earlier is None and alias == PRODUCTION and given_back:
                return before, self.get(self._give_back(connection, writes, before, given_back))
            if earlier is None and alias != LATEST and untouched:
                return before, self.get(self._unpin(connection, writes, before, alias))
            if earlier is None:
                raise AdapterError(
                    f"cannot roll back {name}@{alias}: it has never named a version other than {before.ref}",
                    f"set it to another version: cl-adapter alias {name}@vN {alias}",
                )
            after = earlier
            writes.move_alias(connection, name, alias, after.version, "rollback")
            taken = after.manifest.get("takes_over", ())
            also = [t for t, ref in served.items() if ref == before.ref and t in taken]
            for task in dict.fromkeys([after.task, *also]) if alias in (PRODUCTION, LATEST) else ():
                if task and (alias == PRODUCTION or not writes.production_serves(connection, task)):
                    writes.set_serving(connection, task, name, after.version)
            writes.add_event(connection, "rollback", after.ref, {"alias": alias, "from": before.ref})
        return before, self.get(after.ref)

    def _moved_already(self, what: str) -> tuple[AdapterRecord, AdapterRecord] | None:
        """The result of a rollback of the same alias that was killed before it was logged; None if there is none."""
        stopped, self._stopped = self._stopped, None
        if stopped is None or stopped.verb != "rollback":
            return None
        wanted, name, alias = parse_ref(what), parse_ref(stopped.ref).name, stopped.detail.get("alias")
        with self._index.reading() as query:
            last = queries.events(query, None, 1)
            held = queries.adapters_with_alias(query, wanted.name)
        bare = wanted.alias is None and wanted.version is None and wanted.name == alias and held.keys() <= {name}
        if [event.id for event in last] != [stopped.id] or not (bare or (wanted.name, wanted.alias) == (name, alias)):
            return None
        again = stopped.detail.get("serves_again")
        before = self.get(stopped.detail.get("from", stopped.ref))
        after = self.get(stopped.ref if again is None else next(iter(again.values()), name))
        _LOG.warning(
            "an interrupted rollback had already moved %s@%s; run rollback again to go back further", name, alias
        )
        return before, after

    def _alias(self, query: Query, what: str) -> tuple[str, str]:
        ref = parse_ref(what)
        if ref.alias is not None:
            return ref.name, ref.alias
        if ref.version is not None:
            raise UsageError(f"{what} is a version; only an alias can be rolled back", f"use {ref.name}@{PRODUCTION}")
        held = queries.adapters_with_alias(query, ref.name)
        if len(held) > 1:
            raise queries.ambiguous_alias(ref.name, held)
        if not held:
            known = {alias for aliases in queries.aliases(query).values() for alias in aliases}
            raise UnknownNameError("alias", ref.name, known, "or write NAME@ALIAS" if known else "write NAME@ALIAS")
        return next(iter(held)), ref.name

    def _before_promotion(self, query: Query, current: AdapterRecord, served: Mapping[str, str]) -> dict[str, str]:
        """Task → the version that served it before this one was promoted, where that version still exists."""
        for event in queries.events(query, current.ref, None):
            if event.verb == "promote" and event.detail.get("served_before"):
                there = {
                    r.ref for r in queries.adapters(query, self.versions_in, all_versions=True, include_rejected=False)
                }
                before: Mapping[str, str] = event.detail["served_before"]
                return {t: ref for t, ref in before.items() if served.get(t) == current.ref and ref in there}
        return {}

    def _give_back(self, connection: Any, writes: Any, current: AdapterRecord, tasks: Mapping[str, str]) -> str:
        """Let these versions serve these tasks again and drop the adapter's `production`; returns the first version."""
        writes.drop_alias(connection, current.name, PRODUCTION, "rollback")
        for task, ref in tasks.items():
            answers = parse_ref(ref)
            writes.set_serving(connection, task, answers.name, answers.version)
        writes.add_event(connection, "rollback", current.ref, {"alias": PRODUCTION, "serves_again": dict(tasks)})
        return next(iter(tasks.values()))

    def _unpin(self, connection: Any, writes: Any, current: AdapterRecord, alias: str) -> str:
        """Remove an alias as if it had never been set; returns the version that serves the first task from now on, or
        the newest one."""
        with self._index.reading() as query:
            there = queries.adapters(query, self.versions_in, all_versions=True, include_rejected=False)
            served = queries.serving(query)
        again: dict[str, str] = {}
        for task in current.tasks if alias == PRODUCTION else ():
            if served.get(task) != current.ref:
                continue
            others = [r for r in there if task in r.tasks and PRODUCTION in r.aliases and r.name != current.name]
            free = [r for r in there if task in r.tasks and (r.manifest.get("published") or {}).get("serve", True)]
            latest = [r for r in free if LATEST in r.aliases]  # `latest` may have been rolled back
            newest = max(others or latest or free or [current], key=lambda r: (r.created_at, r.version))
            writes.set_serving(connection, task, newest.name, newest.version)
            again[task] = newest.ref
        writes.drop_alias(connection, current.name, alias, "rollback")
        writes.add_event(connection, "rollback", current.ref, {"alias": alias, "serves_again": again})
        mine = [r for r in there if r.name == current.name and r.status == "active"]
        own = next((r for r in mine if LATEST in r.aliases), max(mine, key=lambda r: r.version, default=current))
        return next(iter(again.values()), own.ref)

    @staticmethod
    def _set_once(query: Query, name: str, alias: str) -> bool:
        """Whether an alias has named only one version since it was set. An alias that was moved and then rolled back
        to its first version does not count: removing it would bring back the version that was rolled back."""
        named: set[int] = set()
        for move in queries.alias_history(query, name, alias):
            named = {*named, move.version} if move.version is not None else set()
        return len(named) == 1


def previous(query: Query, store: queries.Store, current: AdapterRecord, alias: str) -> AdapterRecord | None:
    """The version that an alias named before; None if it never named another one."""
    there = {record.version: record for record in queries.versions(query, store, current.name)}
    stack: list[int] = []  # the versions that the alias has moved on from and not yet come back to
    for move in queries.alias_history(query, current.name, alias):
        if move.version is None and move.reason == "rollback":
            stack.clear()  # the alias was removed as if it had never been set
        if move.version is None or move.version not in there:
            continue
        if move.reason == "rollback" and move.version in stack:
            while stack[-1] != move.version:
                stack.pop()
        elif not stack or stack[-1] != move.version:
            stack.append(move.version)
    earlier = [version for version in stack[:-1] if version != current.version]
    return there[earlier[-1]] if earlier else None


def ways_on(query: Query, store: queries.Store, damaged: AdapterRecord) -> list[str]:
    """Suggested ways out when a version is damaged and no copy of it exists; empty if the hub does not need it."""
    for alias in (PRODUCTION, LATEST):
        if alias in damaged.aliases and previous(query, store, damaged, alias) is not None:
            return [f"roll back: cl-adapter rollback {damaged.name}@{alias}"]
    if damaged.task and damaged.ref in queries.serving(query).values():
        again = f"retrain it: cl-adapter add-task {damaged.task} DATA"
        return [again, f"forget it: cl-adapter forget-task {damaged.task}"]
    return []
