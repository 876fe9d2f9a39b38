"""Leaving: versions written for use outside of the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl import exporting
from adapterhub_cl.errors import UsageError
from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.options import takes
from adapterhub_cl.progress import Reporter, usual
from adapterhub_cl.registry import check_local
from adapterhub_cl.registry.names import refuse_inside

if TYPE_CHECKING:
    from adapterhub_cl.evaluation.replaying import Replayed


class Leaving(OpenedHub):
    """The verbs that write for other tools."""

    @takes(*exporting.options())
    def export(
        self,
        ref: str,
        target: str | Path,
        *,
        format: str = exporting.DEFAULT,  # noqa: A002 (the flag's name)
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> Path:
        """Write a version to an empty or missing directory, in the form that another tool opens. No file names a folder
        of this machine.

        Args:
            format: `peft` for PEFT's own format with the tokenizer, `task.json` (how it is asked) and a `predict.py`
                that needs transformers and PEFT alone; the reference lists the others, with their options.

        Raises:
            UnknownNameError: no such version or format.
            UsageError: the directory is not empty, or an option belongs to another format.
            StorageError: the disk cannot be written; the directory is unchanged.
        """
        kind, config = exporting.configured(format, asked)
        order = self._order(ref, self._outside(target), config, reporter)
        self._tell_other(ref, reporter)
        return exporting.export(order, kind)

    @takes(*exporting.options())
    def export_all(
        self,
        target: str | Path,
        *,
        format: str = exporting.DEFAULT,  # noqa: A002 (the flag's name)
        reporter: Reporter | None = None,
        **asked: Any,
    ) -> list[str]:
        """Write every version that answers now to `target/NAME`: all of them, or nothing. Where two versions of one
        adapter answer, each for tasks of its own, they are `target/NAME@vN`.

        Returns:
            the versions that were written.

        Raises:
            UsageError: no adapter answers, the directory is not empty, or an option belongs to another format.
            AdapterError: a version cannot be written in this format.
        """
        kind, config = exporting.configured(format, asked)
        folder = self._outside(target)
        # An adapter that was imported without a task serves none, and is asked by its name.
        found = [self.registry.get(ref) for ref in set(self.registry.serving().values())]
        often = Counter(record.name for record in found)
        found += [r for r in self.registry.adapters(include_rejected=False) if not r.tasks and r.name not in often]
        named = {r.ref if often[r.name] > 1 else r.name: r.ref for r in found}
        if not named:
            raise UsageError("nothing answers in this hub yet", "cl-adapter add-task NAME DATA trains an adapter")
        orders = [self._order(ref, folder / name, config, reporter) for name, ref in sorted(named.items())]
        exporting.export_all(orders, kind, folder)
        return [order.record.ref for order in orders]

    # -- inside ----------------------------------------------------------------------------------

    def _outside(self, target: str | Path) -> Path:
        folder = check_local(target)
        refuse_inside(folder, self.folder, "export to a folder outside of it")
        return folder

    def _tell_other(self, ref: str, reporter: Reporter | None) -> None:
        """Tell where a bare name means its newest version, and another one answers."""
        record = self.registry.get(ref)
        serves = [one for one in self.registry.serving().values() if self.registry.get(one).name == record.name]
        if ref == record.name and serves and record.ref not in serves:
            usual(reporter).note(f"note: {record.ref} is the newest version; {serves[0]} is the one that answers now")

    def _order(self, ref: str, folder: Path, config: Any, reporter: Reporter | None) -> exporting.ExportOrder:
        from adapterhub_cl.adapters.serving import tasks_of

        record = self.registry.get(ref)
        self.registry.check_files(record)
        tasks = tasks_of(self.registry, record)
        hub, mine = self.context(reporter), self._loaded is None
        release = self._release if mine else lambda: None
        return exporting.ExportOrder(record, folder, self.base, tasks, hub, config, release)

    def verify_against(
        self,
        url: str,
        refs: Sequence[str] = (),
        *,
        model: str | None = None,
        rows: int | None = None,
        min_retention: float | None = None,
        reporter: Reporter | None = None,
    ) -> list[Replayed]:
        """Ask a running server the held-out rows of versions, and compare with their recorded scores.

        The server speaks OpenAI's completions: this project's, vLLM or llama.cpp's. Its key is taken from the
        environment variable CL_ADAPTER_API_KEY.

        Args:
            url: of the server.
            refs: the versions; default: every one that serves a task.
            model: the server's name of the one version, if it lists it under another.
            rows: how many rows of each task; default: all.
            min_retention: share of the score that the server must keep; default: 0.97.

        Returns:
            for each version its figures; `lost` names the tasks of which too much is lost.

        Raises:
            ServerError: the server cannot be reached, or refuses.
            UsageError: the server has no such model, or a value cannot be used.
        """
        from adapterhub_cl.evaluation import replaying

        least = replaying.LEAST if min_retention is None else min_retention
        if not 0 <= least <= 1:
            raise UsageError(f"--min-retention must be between 0 and 1, not {least:g}", "0.97 is usual")
        if rows is not None and rows < 1:
            raise UsageError(f"--rows must be at least 1, not {rows}", "leave it out to ask all")
        if isinstance(refs, str):
            raise UsageError(f"refs must be a list of adapters, not the text {refs!r}", f'for example ["{refs}"]')
        return replaying.replay(self.context(reporter), url, refs, model, rows, least)

    def _release(self) -> None:
        self._loaded = None
