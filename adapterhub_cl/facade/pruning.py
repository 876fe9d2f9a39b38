"""Pruning: smaller adapters, and fewer of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.launching import one_process
from adapterhub_cl.progress import Reporter, usual
from adapterhub_cl.types import AdapterRecord

if TYPE_CHECKING:
    from adapterhub_cl.pruning.unused import Verdict

MEASUREMENTS = 24


class Pruning(OpenedHub):
    """The verb `prune`."""

    def prune(
        self,
        ref: str,
        *,
        rank: int | None = None,
        energy: float | None = None,
        across: bool = False,
        search: bool = False,
        magnitude: float | None = None,
        store: str | None = None,
        name: str | None = None,
        min_retention: float | None = None,
        evaluate: bool = True,
        measurements: int = MEASUREMENTS,
        seed: int = 0,
        reporter: Reporter | None = None,
    ) -> AdapterRecord:
        """Make a smaller version of a version: the best approximation of ΔW at lower ranks, in as many bits as wanted.

        It serves once it is promoted. Its manifest has the retention of each task, the truncation error and the bytes;
        its `recipe.json` the ranks and errors of each layer.

        Args:
            rank: in every layer, or all that a layer has.
            energy: in every layer the smallest rank that keeps this share of ‖ΔW‖². Where nothing at all is asked
                for, 0.99.
            across: spend `rank` (as the mean) or `energy` over all layers together: the largest singular values of any
                layer stay.
            search: the smallest ranks that keep `min_retention`, found by measuring.
            magnitude: share of the factors' smallest entries that are set to zero; saves nothing by itself.
            store: `fp32`, `bf16`, `fp16`, or `int8`, `int4` (packed; `export` writes the plain form); default: as the
                parent is stored.
            name: of another adapter to be made; default: the next version of the same one.
            min_retention: the lowest retention that passes; default: `min_retention` in hub.toml, else all pass.
            evaluate: measure the retention of each task.
            measurements: most retentions that a search measures.

        Raises:
            GateRefused: a task retains too little; the version (`error.record`) is kept as rejected.
            UsageError: options that cannot be used.
            AdapterError: nothing would change, or it is no adapter that can be pruned (DoRA, zero).
        """
        from adapterhub_cl.consolidation.prune import PruneRequest, prune

        one_process("prune")
        request = PruneRequest(
            ref, rank, energy, across, search, magnitude, store, min_retention, evaluate, measurements, seed
        )
        return prune(self.registry, self.load_base, request, usual(reporter), name=name, new_version=False)

    def plan_prune(
        self,
        ref: str,
        *,
        rank: int | None = None,
        energy: float | None = None,
        across: bool = False,
        search: bool = False,
        magnitude: float | None = None,
        store: str | None = None,
        min_retention: float | None = None,
        measurements: int = MEASUREMENTS,
        reporter: Reporter | None = None,
    ) -> dict[str, Any]:
        """What `prune` would give, without writing anything: ranks, errors, bytes. A search measures all the same."""
        from adapterhub_cl.consolidation.prune import PruneRequest, plan

        request = PruneRequest(ref, rank, energy, across, search, magnitude, store, min_retention, True, measurements)
        return plan(self.registry, self.load_base, request, usual(reporter))

    def redundant(
        self, *, threshold: float = 0.9, evaluate: bool = True, reporter: Reporter | None = None
    ) -> dict[str, Any]:
        """Pairs of adapters (each at its latest version) whose updates lie in the same spaces and, where both have
        replay samples, how often their predictions on both's samples are equal. Proposes merging, does nothing.

        Args:
            threshold: of the similarity of the spaces, and of the equal predictions (without these: of the cosine).
            evaluate: compare predictions; needs the base.
        """
        from adapterhub_cl.consolidation.proposals import redundant

        return redundant(self.registry, self.load_base if evaluate else None, threshold, usual(reporter))

    def unused(self, days: float = 30) -> list[Verdict]:
        """Every version with a verdict: proposed for removal, or why it stays."""
        from adapterhub_cl.consolidation.proposals import unused

        return unused(self.registry, days)

    def remove(self, refs: Sequence[str], *, days: float = 30) -> list[AdapterRecord]:
        """Mark versions deleted that `unused(days)` proposes; their files stay until `gc`.

        Raises:
            AdapterError: one is not proposed; none is removed.
        """
        from adapterhub_cl.consolidation.proposals import remove

        return remove(self.registry, refs, days)
