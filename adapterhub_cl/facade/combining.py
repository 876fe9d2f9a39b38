"""Combining: versions made out of stored ones, measured on their parents' tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterhub_cl.consolidation.asked import EPOCHS, DistillRequest, MergeRequest
from adapterhub_cl.distillation.distill_settings import DistillationSettings
from adapterhub_cl.errors import UsageError
from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.launching import one_leads
from adapterhub_cl.options import given_of, takes
from adapterhub_cl.progress import Reporter
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import AdapterRecord

if TYPE_CHECKING:
    from adapterhub_cl.consolidation.distill import Places


def _pack(found: Any) -> Any:
    """What a waiting process finds a new version by; a dict as it is."""
    return found.ref if isinstance(found, AdapterRecord) else found


def _unpack(packed: Any, hub: Combining, *_: Any, into: Combining | None = None, **__: Any) -> Any:
    return (into or hub).registry.get(packed) if isinstance(packed, str) else packed


class Combining(OpenedHub):
    """The verbs that make versions out of versions."""

    @takes(MergeRequest)
    @one_leads(_pack, _unpack)
    def merge(
        self,
        refs: Sequence[str] = (),
        *,
        name: str | None = None,
        new_version: bool = False,
        dry_run: bool = False,
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> Any:
        """Merge versions into one new adapter, on their factors; no base is needed but to measure.

        The new version answers for its parents' tasks once it is promoted. Its manifest has the retention of each
        task; its `recipe.json` the truncation error of each layer and how much the parents disturb each other.

        Args:
            refs: the versions to merge; leave it out where `expression` names them.
            name: of the new adapter; a dry run needs none.
            new_version: `name` may exist already: this becomes its next version.
            dry_run: write nothing and return a dict: parents, ranks, `bytes` on disk, `memory` for the largest layer,
                `truncation_error`, `interference`. Methods that learn from replay samples are estimated on the plain
                sum.

        Returns:
            the new version (an `AdapterRecord`), or the dict of a dry run.

        Raises:
            GateRefused: a task retains too little; the version (`error.record`) is kept as rejected.
            UsageError: names, weights, rank or options that cannot be used.
            AdapterError: the versions are of different bases, or cancel each other out.
        """
        request = MergeRequest(_several(refs), **asked)
        if not dry_run and name is None:
            raise UsageError("the merged adapter needs a name", "add --as NAME, or --dry-run to look first")
        from adapterhub_cl.consolidation.checking import check_merge

        order = check_merge(self.registry, request, name, new_version=new_version)
        from adapterhub_cl.consolidation.merge import merge, plan

        return (plan if dry_run else merge)(self.context(reporter), order)

    @takes(DistillRequest, DistillationSettings, TrainingSettings, epochs=EPOCHS, rank=None, max_length=None)
    @one_leads(_pack, _unpack)
    def distill(
        self,
        refs: Sequence[str],
        *,
        name: str,
        new_version: bool = False,
        into: Combining | None = None,
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> AdapterRecord:
        """Teach one new adapter, the student, to answer as several versions do, each for its own tasks.

        For every row, its own teacher's distribution over the next token is computed once, at the answer positions;
        the student's loss is KL · T² + α · the loss on the known answers. It starts from the merged adapter.

        Args:
            refs: the teachers.
            name: of the new adapter.
            new_version: `name` may exist already: this becomes its next version.
            into: a hub of another base with the same tokenizer: the student is trained on that base, for that hub.

        Raises:
            GateRefused: a task retains too little; the version (`error.record`) is kept as rejected.
            TrainingInterrupted: stopped by the user; `distill_resume` goes on.
            AdapterHubError: any of its kinds; the hub is as it was before.
        """
        own = given_of(DistillRequest, asked)
        own |= {"distillation": given_of(DistillationSettings, asked), "settings": given_of(TrainingSettings, asked)}
        request = DistillRequest(tuple(_several(refs)), **own)
        student = (into or self).registry
        from adapterhub_cl.consolidation.checking import check_distill

        check_distill(student, request, name, new_version=new_version, elsewhere=into is not None)
        from adapterhub_cl.consolidation.distill import distill

        return distill(self._places(into, reporter), name, request, new_version=new_version)

    @one_leads(_pack, _unpack)
    def distill_resume(
        self, name: str, *, into: Combining | None = None, reporter: Reporter | None = None
    ) -> AdapterRecord:
        """Go on with the newest unfinished distillation of this name; everything is as it was started.

        Raises:
            UsageError: there is none, or it taught the hub of another base: name it by `into`.
        """
        from adapterhub_cl.consolidation.distill import distill, resumed

        run, request, new_version, teachers = resumed((into or self).registry, name)
        if teachers != str(self.folder.resolve()):
            raise UsageError(f"the unfinished distillation of {name} has its teachers in {teachers}", "name that hub")
        return distill(self._places(into, reporter), name, request, new_version=new_version, run=run)

    def is_fresh(self, name: str) -> bool:
        """Whether a distilled adapter was made of the newest versions of its teachers.

        Raises:
            UsageError: it was not distilled in this hub.
        """
        from adapterhub_cl.consolidation.checking import refreshed

        return refreshed(self.registry, name)[1] is None

    @one_leads(
        lambda found: (_pack(found[0]), found[1]), lambda packed, hub, *_, **__: (_unpack(packed[0], hub), packed[1])
    )
    def distill_refresh(self, name: str, *, reporter: Reporter | None = None) -> tuple[AdapterRecord, bool]:
        """A distilled adapter, made again if one of its teachers has a newer version.

        Returns:
            the newest version, and whether it is a new one.

        Raises:
            UsageError: it was not distilled in this hub.
        """
        from adapterhub_cl.consolidation.checking import refreshed

        there, request = refreshed(self.registry, name)
        if request is None:
            return there, False
        from adapterhub_cl.consolidation.distill import distill

        return distill(self._places(None, reporter), there.name, request, new_version=True), True

    def _places(self, into: Combining | None, reporter: Reporter | None) -> Places:
        from adapterhub_cl.consolidation.distill import Places

        return Places(self.context(reporter), None if into is None else into.context(reporter))


def _several(refs: Sequence[str]) -> Sequence[str]:
    """The references as they are.

    Raises:
        UsageError: one text in place of a list.
    """
    if isinstance(refs, str):
        raise UsageError(f"refs must be a list of adapters, not the text {refs!r}", f'for example ["{refs}", "OTHER"]')
    return refs
