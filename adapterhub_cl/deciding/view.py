"""What an engine knows of the index: who serves which task, read again whenever something was committed."""

from __future__ import annotations

import logging
import time

from adapterhub_cl.adapters.serving import ServingTable
from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.watching import Watch
from adapterhub_cl.types import AdapterRecord

RETRY_S = 5.0  # how long the server of an index that could not be reached is left alone
_LOG = logging.getLogger("adapterhub_cl")


class View(ServingTable):
    """The serving table, tasks and versions as they were at the last look; for one thread.

    Attributes:
        versions: reference → version, of all that are there.
        generation: counts the changes that were seen.
    """

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry, {})
        self._watch = Watch(registry)
        self.versions: dict[str, AdapterRecord] = {}
        self.generation = 0
        self._stale = True
        self._not_before = 0.0

    def refresh(self) -> bool:
        """Look whether something was committed; whether there was.

        While the server of an index cannot be reached, what was read last stays, so that requests are answered.
        """
        if time.monotonic() < self._not_before:
            return False
        try:
            return self._refresh()
        except StorageError as error:
            if not (self.generation and self._watch.is_remote):
                raise
            self._not_before = time.monotonic() + RETRY_S
            _LOG.warning("%s; answering as the hub was before", error.message)
            return False

    def _refresh(self) -> bool:
        self._stale = self._watch.changed() or self._stale
        if not self._stale:
            return False
        self.serving, self.canaries = self.registry.serving(), self.registry.canaries()
        self.versions = {record.ref: record for record in self.registry.adapters(all_versions=True)}
        self._stale = False  # only now: where reading failed, the next look reads again
        self.generation += 1
        for known in (self._records, self._tasks, self._served):
            known.clear()
        return True

    def record(self, ref: str) -> AdapterRecord:
        return self.versions[ref] if ref in self.versions else super().record(ref)

    def close(self) -> None:
        self._watch.close()
