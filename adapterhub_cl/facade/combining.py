"""Combining: versions made out of stored ones, measured on their parents' tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.launching import one_process
from adapterhub_cl.progress import Reporter, usual
from adapterhub_cl.types import AdapterRecord

if TYPE_CHECKING:
    from adapterhub_cl.consolidation.distill import Places


class Combining(OpenedHub):
    """The verbs that make versions out of versions."""

    def merge(
        self,
        refs: Sequence[str] = (),
        *,
        name: str,
        method: str = "linear",
        weights: Sequence[float] | None = None,
        expression: str | None = None,
        rank: int | None = None,
        options: Mapping[str, Any] | None = None,
        evaluate: bool = True,
        min_retention: float | None = None,
        new_version: bool = False,
        seed: int = 0,
        reporter: Reporter | None = None,
    ) -> AdapterRecord:
        """Merge versions into one new adapter, on their factors; no base is needed but to measure.

        The new version answers for its parents' tasks once it is promoted. Its manifest has the retention of each
        task; its `recipe.json` the truncation error of each layer and how much the parents disturb each other.

        Args:
            refs: versions; or none, and `expression`: `"0.7*news + 0.3*reviews - slang"`.
            name: of the new adapter.
            method: a name of `adapterhub_cl.merging`.
            weights: one for each version; default: as the method has it (an equal share, or 1 each).
            rank: highest rank of a layer; default: as the method has it, for `linear` all ranks added up, exactly.
            options: of the method: `{"density": 0.3}`.
            evaluate: measure the retention of each parent's task.
            min_retention: the lowest retention that passes; default: `min_retention` in hub.toml, else all pass.
            new_version: `name` may be there already: this becomes its next version.

        Raises:
            GateRefused: a task retains too little; the version (`error.record`) is kept as rejected.
            UsageError: names, weights, rank or options that cannot be used.
            AdapterError: the versions are of different bases, or cancel each other out.
        """
        from adapterhub_cl.consolidation.asked import MergeRequest, check_merge

        one_process("merge")
        request = MergeRequest(refs, weights, expression, method, rank, options, min_retention, evaluate, seed)
        order = check_merge(self.registry, request, name, new_version=new_version)
        from adapterhub_cl.consolidation.merge import merge

        return merge(self.registry, self.load_base, order, usual(reporter))

    def plan_merge(
        self,
        refs: Sequence[str] = (),
        *,
        method: str = "linear",
        weights: Sequence[float] | None = None,
        expression: str | None = None,
        rank: int | None = None,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
        new_version: bool = False,
        seed: int = 0,
        reporter: Reporter | None = None,
    ) -> dict[str, Any]:
        """What `merge` would give, without writing anything. Methods that learn from replay samples are estimated on
        the plain sum.

        Args:
            name: of the new adapter, to be checked too; the others as in `merge`.

        Returns:
            parents, ranks, `bytes` on disk, `memory` for the largest layer, `truncation_error`, `interference`.

        Raises:
            UsageError, AdapterError: as `merge`.
        """
        from adapterhub_cl.consolidation.asked import MergeRequest, check_merge

        request = MergeRequest(refs, weights, expression, method, rank, options, seed=seed)
        order = check_merge(self.registry, request, name, new_version=new_version)
        from adapterhub_cl.consolidation.merge import plan

        return plan(self.registry, self.load_base, order, usual(reporter))

    def distill(
        self,
        refs: Sequence[str],
        *,
        name: str,
        samples: bool = True,
        data: Sequence[str] = (),
        pseudo: int = 0,
        start: str = "linear",
        temperature: float = 2.0,
        task_loss: float = 0.5,
        features: str = "",
        feature_weight: float = 1.0,
        top: int = 512,
        grow: bool = False,
        into: Combining | None = None,
        evaluate: bool = True,
        min_retention: float | None = None,
        new_version: bool = False,
        reporter: Reporter | None = None,
        **settings: Any,
    ) -> AdapterRecord:
        """Teach one new adapter, the student, to answer as several versions do, each for its own tasks.

        For every row its own teacher's distribution over the next token is computed once, at the answer positions;
        the student's loss is KL · T² + α · the loss on the known answers. It starts from the merged adapter.

        Args:
            refs: the teachers.
            samples: ask them their replay samples.
            data: unlabelled text to ask as well: `FILE` for every task, or `TASK=FILE`.
            pseudo: samples that each teacher writes for each of its tasks, to be asked as well.
            start: the merge method whose result the student starts from, or `none`.
            temperature: softens the distributions; `task_loss` (α) weighs the known answers; `features`, layers as
                `3,5`, lets hidden states agree too, weighed by `feature_weight`; `top` tokens of each are kept.
            grow: double the rank until every task retains `min_retention`.
            into: a hub of another base with the same tokenizer: the student is trained on that base, for that hub.
            settings: fields of `TrainingSettings`: `rank` (default: the largest teacher's), `epochs` (default: 8), …

        Raises:
            GateRefused: a task retains too little; the version (`error.record`) is kept as rejected.
            TrainingInterrupted: stopped by the user; `distill_resume` goes on.
            AdapterHubError: any of its kinds; the hub is as it was before.
        """
        from adapterhub_cl.consolidation.asked import DistillRequest, check_distill

        one_process("distill")
        held_to = {"temperature": temperature, "task_loss": task_loss, "features": features}
        held_to |= {"feature_weight": feature_weight, "top": top}
        request = DistillRequest(
            tuple(refs), held_to, settings, samples, tuple(data), pseudo, start, grow, min_retention, evaluate
        )
        student = (into or self).registry
        check_distill(student, request, name, new_version=new_version, elsewhere=into is not None)
        from adapterhub_cl.consolidation.distill import distill

        return distill(self._places(into), name, request, usual(reporter), new_version=new_version)

    def distill_resume(
        self, name: str, *, into: Combining | None = None, reporter: Reporter | None = None
    ) -> AdapterRecord:
        """Go on with the newest unfinished distillation of this name; everything is as it was started.

        Raises:
            UsageError: there is none, or it taught the hub of another base: name it by `into`.
        """
        from adapterhub_cl.consolidation.distill import distill, resumed
        from adapterhub_cl.errors import UsageError

        one_process("distill")
        run, request, new_version, teachers = resumed((into or self).registry, name)
        if teachers != str(self.folder.resolve()):
            raise UsageError(f"the unfinished distillation of {name} has its teachers in {teachers}", "name that hub")
        return distill(self._places(into), name, request, usual(reporter), new_version=new_version, run=run)

    def is_fresh(self, name: str) -> bool:
        """Whether a distilled adapter was made of the newest versions of its teachers.

        Raises:
            UsageError: it was not distilled in this hub.
        """
        from adapterhub_cl.consolidation.asked import refreshed

        return refreshed(self.registry, name)[1] is None

    def distill_refresh(self, name: str, *, reporter: Reporter | None = None) -> tuple[AdapterRecord, bool]:
        """A distilled adapter, made again if one of its teachers has a newer version.

        Returns:
            the newest version, and whether it is a new one.

        Raises:
            UsageError: it was not distilled in this hub.
        """
        from adapterhub_cl.consolidation.asked import refreshed

        one_process("distill")
        there, request = refreshed(self.registry, name)
        if request is None:
            return there, False
        from adapterhub_cl.consolidation.distill import distill

        return distill(self._places(None), there.name, request, usual(reporter), new_version=True), True

    def _places(self, into: Combining | None) -> Places:
        from adapterhub_cl.consolidation.distill import Places

        if into is None:
            return Places(self.registry, self.load_base)
        return Places(self.registry, self.load_base, into.registry, into.load_base)
