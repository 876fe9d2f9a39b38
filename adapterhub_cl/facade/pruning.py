"""Pruning: smaller adapters, and fewer of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterhub_cl.consolidation.asked import ALIKE, AUTO, UNUSED_DAYS, PruneRequest
from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.launching import one_process
from adapterhub_cl.options import takes
from adapterhub_cl.progress import Reporter
from adapterhub_cl.types import AdapterRecord

if TYPE_CHECKING:
    from adapterhub_cl.pruning.unused import Verdict


class Pruning(OpenedHub):
    """The verb `prune`."""

    @takes(PruneRequest)
    def prune(
        self,
        ref: str,
        *,
        name: str | None = None,
        dry_run: bool = False,
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> Any:
        """Make a smaller version of a version: the best approximation of ΔW at lower ranks, in as many bits as wanted.

        It serves once it is promoted. Its manifest has the retention of each task, the truncation error and the bytes;
        its `recipe.json` the ranks and errors of each layer.

        Args:
            ref: the version to make smaller.
            name: of another adapter to make; default: the next version of the same one.
            dry_run: write nothing and return a dict of ranks, errors and bytes. A search measures all the same.

        Returns:
            the new version (an `AdapterRecord`), or the dict of a dry run.

        Raises:
            GateRefused: a task retains too little; the version (`error.record`) is kept as rejected.
            UsageError: options that cannot be used.
            AdapterError: nothing would change, or it cannot be pruned (DoRA, all zeros).
        """
        if asked.get("rank") == AUTO:
            asked |= {"rank": None, "search": True}
        request = PruneRequest(ref, **asked)
        if not dry_run:
            one_process("prune")
        from adapterhub_cl.consolidation.prune import plan, prune

        if dry_run:
            return plan(self.context(reporter), request)
        return prune(self.context(reporter), request, name=name, new_version=False)

    def redundant(
        self, *, threshold: float = ALIKE, evaluate: bool = True, reporter: Reporter | None = None
    ) -> dict[str, Any]:
        """Pairs of adapters (each at its latest version) whose updates lie in the same spaces and, where both have
        replay samples, how often their predictions on both's samples are equal. Proposes merging, does nothing.

        Args:
            threshold: of the similarity of the spaces, and of the equal predictions (without these: of the cosine).
            evaluate: compare predictions; needs the base.
        """
        from adapterhub_cl.consolidation.proposals import redundant

        return redundant(self.context(reporter), threshold, evaluate=evaluate)

    def unused(self, days: float = UNUSED_DAYS) -> list[Verdict]:
        """Every version with a verdict: proposed for removal, or why it stays."""
        from adapterhub_cl.consolidation.proposals import unused

        return unused(self.registry, days)

    def remove(self, refs: str | Sequence[str], *, days: float = UNUSED_DAYS) -> list[AdapterRecord]:
        """Mark versions deleted that `unused(days)` proposes; their files stay until `gc`.

        Raises:
            AdapterError: one is not proposed; none is removed.
        """
        from adapterhub_cl.consolidation.proposals import remove

        return remove(self.registry, [refs] if isinstance(refs, str) else refs, days)
