"""Which versions, runs and hubs of other tasks saw the same rows, judged by the hashes of files and rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from adapterhub_cl.erasure.places import hub_versions, run_folders, run_request, stream_hubs
from adapterhub_cl.erasure.versions import KnownVersion, sources_of
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples import rows_seen as _seen


@dataclass(frozen=True)
class SharedRows:
    """The data that a task was trained on.

    Attributes:
        rows: hashes of its rows, as in `seen.bin`.
        sources: SHA-256 of its data files.
    """

    rows: frozenset[bytes] = frozenset()
    sources: frozenset[str] = frozenset()

    @classmethod
    def of_task(
        cls, known: Mapping[str, KnownVersion], found: Mapping[str, tuple[str, bool]], keys: frozenset[tuple[str, str]]
    ) -> SharedRows:
        """Collected from the versions that were made for a task, and its samples."""
        own = [known[ref] for ref, (_, is_own) in found.items() if is_own and ref in known]
        # Until 0.2 the hashes were of texts as they came, whose accents may be code points of their own.
        forms = {*keys, *((normalize("NFD", a), normalize("NFD", b)) for a, b in keys)}
        rows = {_seen.row_hash(key) for key in forms}
        sources: set[str] = set()
        for one in own:
            sources |= one.sources
            if one.path is not None:
                rows |= _seen.read(one.path)
        return cls(frozenset(rows), frozenset(sources))

    def why(self, task: str, folder: Path | None, sources: frozenset[str]) -> str:
        """How it is known that a version saw rows of the task; empty if it did not."""
        if self.sources & sources:
            return f"trained on the same file as {task}"
        count = len(self.rows & _seen.read(folder)) if folder is not None else 0
        return f"trained on {count} of the rows that {task} was trained on" if count else ""


def shared_with(
    registry: Registry,
    task: str,
    known: Mapping[str, KnownVersion],
    found: Mapping[str, tuple[str, bool]],
    own: SharedRows,
) -> dict[str, str]:
    """Versions, unfinished runs and comparison hubs (as paths) that are otherwise unrelated to a task → why."""
    shared = {}
    for ref, one in known.items():
        if ref not in found and one.path is not None and (why := own.why(task, one.path, one.sources)):
            shared[ref] = why
    hub = registry.path
    for path in run_folders(registry.runs_dir):
        if run_request(path).get("sha256") in own.sources:
            shared[path.relative_to(hub).as_posix()] = f"an unfinished run on the same file as {task}"
    for inner, folder, manifest in _within(hub):
        if why := own.why(task, folder, sources_of(manifest)):
            shared[inner.relative_to(hub).as_posix()] = f"{manifest.get('name')} there was {why}"
    return shared


def _within(hub: Path) -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    for inner in stream_hubs(hub):
        for folder, manifest in hub_versions(inner):
            yield inner, folder, manifest
