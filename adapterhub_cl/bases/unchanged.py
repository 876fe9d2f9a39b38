"""Checks whether a hub's base is still the one that it was made for."""

from __future__ import annotations

from collections.abc import Iterable

from adapterhub_cl.bases.fingerprint import changed_to
from adapterhub_cl.bases.sources import QUANTIZATIONS, resolve
from adapterhub_cl.errors import BaseModelError
from adapterhub_cl.types import AdapterRecord, BaseInfo, Problem


def check_adapters(base: BaseInfo, records: Iterable[AdapterRecord]) -> list[Problem]:
    """The versions that were made for another base."""
    return [
        Problem(f"adapters/{r.name}/v{r.version}", "made for another base", "move it to a hub of its own base")
        for r in records
        if r.manifest.get("base", {}).get("fingerprint", base.fingerprint) != base.fingerprint
    ]


def check_base(base: BaseInfo) -> list[Problem]:
    """Problems with the base; empty if there are none."""
    if base.quantization not in QUANTIZATIONS:
        return [
            Problem("hub.toml", f"unknown quantization {base.quantization!r}", f"one of {', '.join(QUANTIZATIONS)}")
        ]
    try:
        now = changed_to(resolve(base.source, base.revision), base.fingerprint)
    except BaseModelError as error:
        return [Problem(base.source, error.message, error.hint)]
    if not now:
        return []
    fix = "restore the base's old files, or create a new hub for the new base with cl-adapter init"
    return [Problem(base.source, "the base has changed since this hub was made", fix)]
