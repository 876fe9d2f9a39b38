"""The report: one page about a hub."""

from __future__ import annotations

from pathlib import Path

from adapterhub_cl.facade.opened import OpenedHub

DEFAULT = "report.html"


class Reporting(OpenedHub):
    """The verb `report`."""

    def report(self, path: str | Path | None = None, *, title: str | None = None, overwrite: bool = False) -> Path:
        """Write one self-contained HTML page about this hub: accuracy matrix, scores over time, gate decisions,
        adapters, lineage, retention and truncation errors, routing, replay samples.

        It shows what is recorded; nothing is measured, no base and no torch is loaded. It holds no replay sample and no
        whole path, but tasks' names and labels.

        Args:
            path: of the file; default: `report.html` in the current folder. An earlier report is replaced.
            title: at the top of the page; default: the name of the hub's folder.
            overwrite: overwrite the file even if it is not a report.

        Returns:
            The file.

        Raises:
            UsageError: a directory, a file that is no report, or a place inside the hub.
            IntegrityError, StorageError: the index cannot be read, or the disk refused; an old file is untouched.
        """
        from adapterhub_cl.reporting.page import write

        return write(self.registry, Path(path or DEFAULT), title=title, overwrite=overwrite).path
