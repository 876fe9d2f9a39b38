"""Rebasing: the hub's tasks in a hub on another base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.launching import one_process
from adapterhub_cl.options import from_mapping, given_of, takes
from adapterhub_cl.progress import Reporter
from adapterhub_cl.rebasing.rebase_options import RebaseOptions
from adapterhub_cl.settings import TrainingSettings

if TYPE_CHECKING:
    from adapterhub_cl.rebasing.rebase_steps import Rebased


class Rebasing(OpenedHub):
    """The verb that moves a hub's tasks to another base."""

    @takes(RebaseOptions, TrainingSettings)
    def rebase(
        self,
        base: str,
        *,
        revision: str | None = None,
        dry_run: bool = False,
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> Rebased:
        """Make a hub on another base that knows this hub's tasks; this hub is only read.

        Each task is learned again from its original data where they still lie unchanged where they were, otherwise
        from its replay samples. It is scored on the rows that the old version is scored on, and recorded as rejected
        if it keeps less than `min_retention` of that score. The same call goes on where it was stopped. If the new
        base is the old one in other files, the versions are copied and nothing is trained.

        A training setting that is not given is that of the old version, unless it belongs to the old base, as the
        learning rate does.

        Args:
            base: as in `init`.
            revision: branch, tag or commit of a hub id.
            dry_run: only say from what each task would be learned, and what it is expected to keep where other tasks
                were moved into the same hub before; nothing is written.

        Returns:
            the new hub's folder, and for each task what became of it; a rejected one raises nothing.

        Raises:
            HubError: the hub at `to` belongs to another base, or to somebody else.
            TrainingError: another process is moving tasks into it.
            TrainingInterrupted: stopped by the user; the same call goes on.
        """
        one_process("rebase")
        from adapterhub_cl.rebasing.rebase_steps import rebase

        settings = given_of(TrainingSettings, asked)
        TrainingSettings.from_mapping(settings, "the settings")
        options = from_mapping(RebaseOptions, given_of(RebaseOptions, asked), "rebase")

        def free() -> None:
            self._loaded = None

        return rebase(
            self.context(reporter),
            base,
            options,
            settings,
            lambda registry: OpenedHub(registry, self.device, self.dtype).context(reporter),
            free,
            revision=revision,
            dry_run=dry_run,
        )
