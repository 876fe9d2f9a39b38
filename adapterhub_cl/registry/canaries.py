"""Canaries: a version that answers a share of its task's requests beside the version that serves the task.

A canary is the alias `canary`, so that it is listed, kept and mirrored as every alias is; its share is in the log entry
that set it. It counts only while the version beside which it was set still serves the task.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.registry import queries
from adapterhub_cl.registry.core import RegistryCore
from adapterhub_cl.types import CANARY, AdapterRecord


@dataclass(frozen=True)
class Canary:
    """A version that answers a share of a task's requests.

    Attributes:
        share: 0 to 1.
        beside: the version that answers the others.
    """

    ref: str
    task: str
    share: float
    beside: str


class Canaries(RegistryCore):
    def start_canary(self, ref: str, share: float) -> AdapterRecord:
        """Let a version answer a share of its task's requests; the canary before it, if any, ends.

        Raises:
            UsageError: the share is not above 0 and below 1.
            AdapterError: the version was refused, has no task, or nothing else serves its task.
        """
        if not 0 < share < 1:
            raise UsageError(f"a canary's share must be above 0 and below 1, not {share}", "for example 0.1")
        ref = self.local(ref)
        with self._write() as (connection, writes):
            record = self.get(ref)
            with self._index.reading() as query:
                beside = queries.serving(query).get(record.task)
            if record.status != "active" or not record.task or beside in (None, record.ref):
                why = "was refused" if record.status != "active" else "has no other version beside it that serves"
                raise AdapterError(f"{record.ref} cannot be a canary: it {why}", f"cl-adapter promote {record.ref}")
            writes.move_alias(connection, record.name, CANARY, record.version, "canary")
            writes.add_event(connection, "canary", record.ref, {"alias": CANARY, "share": share, "beside": beside})
        return self.get(record.ref)

    def end_canary(self, name: str, reason: str) -> None:
        """Let an adapter have no canary; nothing happens if it has none."""
        with self._write() as (connection, writes):
            with self._index.reading() as query:
                version = queries.aliases_of(query, name).get(CANARY)
            if version is not None:
                writes.drop_alias(connection, name, CANARY, reason)
                writes.add_event(connection, "canary ends", f"{name}@v{version}", {"alias": CANARY, "reason": reason})

    def canaries(self) -> dict[str, Canary]:
        """Task → its canary."""
        found = {}
        with self._index.reading() as query:
            held = queries.adapters_with_alias(query, CANARY)
            served = queries.serving(query) if held else {}
            for name, version in held.items():
                record = queries.find(query, self.versions_in, f"{name}@v{version}")
                told = next((e for e in queries.events(query, record.ref, None) if e.verb == "canary"), None)
                if told is None or record.status != "active" or told.detail.get("beside") != served.get(record.task):
                    continue
                found[record.task] = Canary(
                    record.ref, record.task, float(told.detail["share"]), str(told.detail["beside"])
                )
        return found
