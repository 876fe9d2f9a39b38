"""Erasing: a task is forgotten exactly, and that it is can be proven."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.progress import Reporter, usual
from adapterhub_cl.registry import check_local
from adapterhub_cl.types import AdapterRecord

if TYPE_CHECKING:
    from adapterhub_cl.erasure.plan import ErasurePlan
    from adapterhub_cl.erasure.proof import Proof
    from adapterhub_cl.erasure.removal import Repeat


class Erasing(OpenedHub):
    """The verbs that make a hub forget on purpose."""

    def forget_task(
        self,
        name: str,
        *,
        dry_run: bool = False,
        retire: bool = False,
        everywhere: bool | None = None,
        key: str | Path | None = None,
        reporter: Reporter | None = None,
    ) -> ErasurePlan:
        """Remove a task exactly: all versions made for it, its replay samples and scores, and everything whose lineage
        holds it; merged, distilled and pruned versions are made again without it where that can be done.

        A tombstone with hashes stays under `tombstones/`; `prove_forgotten` searches for them. Their key does not lie
        in the hub. Copies outside the hub (exports, backups, the training data) are not touched. The same call
        completes a removal that was interrupted.

        Args:
            dry_run: only say what would go; nothing is written.
            retire: remove derived versions too, and make none of them again.
            everywhere: whether versions of other tasks that were trained on the same rows go too. None: there must be
                none, and the error names them.
            key: the file of the tombstone's key, made where it is missing; by default in the user's configuration.

        Returns:
            what went, or would go.

        Raises:
            UnknownNameError: the hub knows no such task.
            UsageError: versions of other tasks saw its rows, and `everywhere` is None.
            TrainingError: a run that holds something of it is going on.
            StorageError: the disk refused; the same call completes the removal.
        """
        from adapterhub_cl.erasure import removal

        repeat = None if retire else self._repeat(reporter)
        if dry_run:
            return removal.look(self.registry, name, may_repeat=repeat is not None, everywhere=everywhere)
        place = None if key is None else check_local(key, "a file")
        return removal.forget(self.registry, name, repeat, usual(reporter), everywhere=everywhere, key=place)

    def prove_forgotten(self, name: str, *, key: str | Path | None = None) -> Proof:
        """Search every file of the hub, its index and its journal for what a forgotten task left, and look for versions
        that were trained on its rows.

        Args:
            key: the file of the tombstone's key; by default it is looked for in the user's configuration.

        Raises:
            UnknownNameError: nothing of that name was forgotten.
            AdapterError: its removal was interrupted, it was learned again, or the key is not there.
        """
        from adapterhub_cl.erasure.proof import prove

        return prove(self.registry, name, None if key is None else check_local(key, "a file"))

    def repair(self, *, key: str | Path | None = None, reporter: Reporter | None = None) -> list[str]:
        """Mend what can be mended without loss; one line for each thing done. See `Registry.repair`; tombstones from
        before there were keys are put under one.

        Raises:
            StorageError: the disk refused, or the hub's shared store is not there.
        """
        from adapterhub_cl.erasure.removal import strengthen

        done = self.registry.repair(reporter)
        return [*done, *strengthen(self.registry, None if key is None else check_local(key, "a file"))]

    def _repeat(self, reporter: Reporter | None) -> Repeat:
        """What makes a derived version again."""
        from adapterhub_cl.consolidation.recipes import repeat

        def run(record: AdapterRecord, gone: Mapping[str, str | None]) -> AdapterRecord | None:
            return repeat(self.context(reporter), record, gone)

        return run
