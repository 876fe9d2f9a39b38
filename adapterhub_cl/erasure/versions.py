"""What is known of every version that a hub has or had, and which of them have data of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterHubError, UsageError
from adapterhub_cl.registry import Registry, manifests, parse_ref
from adapterhub_cl.registry.rebuilding import version_directories
from adapterhub_cl.replay import keeps_data
from adapterhub_cl.strategies import MEMORY, build
from adapterhub_cl.types import DERIVED

_WORDS = {
    "updated_from": "updated from",
    "trained_on_top_of": "trained on top of",
    "started_from": "started from",
    "merged_from": "merged from",
    "distilled_from": "distilled from",
    "pruned_from": "pruned from",
    "imported_from": "imported from",
}


@dataclass(frozen=True)
class KnownVersion:
    """A version as described by its manifest, or by the log if the version is gone.

    Attributes:
        parents: (version, relation).
        learned_from: other tasks whose rows were used in its training; None if that was not recorded.
        read_from: the versions that stored those rows.
        sources: SHA-256 of the data files that it was trained on.
        path: its directory; None if that is gone.
        live: whether the index has it as an active or rejected version.
        told: whether its ancestry is known.
    """

    ref: str
    kind: str = ""
    task: str = ""
    status: str = "deleted"
    created_at: str = ""
    parents: tuple[tuple[str, str], ...] = ()
    takes_over: tuple[str, ...] = ()
    learned_from: tuple[str, ...] | None = ()
    read_from: tuple[str, ...] = ()
    strategy: str = ""
    policy: str = ""
    memory: bool = False
    recipe: Mapping[str, Any] | None = None
    path: Path | None = None
    live: bool = False
    told: bool = True
    sources: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.ref.partition("@")[0]


def reads_the_past(strategy: str) -> bool:
    """Whether a strategy reads rows of other tasks; True for an unknown strategy."""
    return _does(strategy, lambda built: bool(built.what_is_read))


def tries_versions(strategy: str) -> bool:
    """Whether a new adapter may start from other tasks' versions; True for an unknown strategy."""
    return _does(strategy, lambda built: built.trial is not None)


def _does(strategy: str, what: Callable[[Any], bool]) -> bool:
    if not strategy:
        return False
    try:
        return what(build(strategy))
    except AdapterHubError:
        return True


def all_known(registry: Registry) -> dict[str, KnownVersion]:
    """Every version by its reference: in the index, only on disk, or only mentioned by others."""
    found: dict[str, KnownVersion] = {}
    for record in registry.adapters(all_versions=True):
        found[record.ref] = _of_manifest(record.ref, record.manifest, record.path, record.status, live=True)
    deleted = registry.deleted_refs()
    for path in version_directories(registry.adapters_dir):
        ref = f"{path.parent.name}@{path.name}"
        if ref in found:
            continue
        try:
            manifest, _ = manifests.read(path)
        except AdapterHubError:
            found[ref] = KnownVersion(ref, path=path, told=False)
            continue
        status = "deleted" if ref in deleted else str(manifest["status"])
        found[ref] = _of_manifest(ref, manifest, path, status, live=False)
    named = {parent for known in found.values() for parent, _ in known.parents} | deleted
    lost = {ref for ref in named if _is_version(ref) and (ref not in found or not found[ref].told)}
    for ref, row in _logged(registry, lost).items():
        found[ref] = _of_log(ref, row, found.get(ref))
    return found


def holders(
    known: Mapping[str, KnownVersion],
    task: str,
    since: str | None,
    already: Iterable[str] = (),
    shared: Mapping[str, str] | None = None,
) -> dict[str, tuple[str, bool]]:
    """The versions that have data of a task: reference → (why, whether it was made for the task).

    Args:
        since: when the hub first recorded the task; None if it never did.
        already: versions already known to have data of it, even if nothing else shows that any more.
        shared: versions of other tasks that saw rows of it → how that is known.
    """
    found: dict[str, tuple[str, bool]] = {}
    for ref, one in known.items():
        if one.task == task:
            found[ref] = (f"made for {task}", True)
        elif why := _own_reason(one, task, since):
            found[ref] = (why, False)
    for ref in already:
        found.setdefault(ref, (f"had data of {task}", known.get(ref, KnownVersion(ref)).task == task))
    for ref, why in (shared or {}).items():
        if ref in known:
            found.setdefault(ref, (why, False))
    saw = {known[ref].task for ref in shared or () if ref in known}
    for ref, one in known.items():
        if also := sorted(saw.intersection(one.learned_from or ())):
            found.setdefault(ref, (f"learned from rows of {also[0]} that are also rows of {task}", False))
    while True:
        more = {
            ref: (why, False)
            for ref, one in known.items()
            if ref not in found and (why := _inherited(one, found) or _hearsay(one, known, found))
        }
        if not more:
            break
        found |= more
    lost = {ref for ref, one in known.items() if not one.live and one.path is None}
    return {ref: why for ref, why in found.items() if ref not in lost or ref in already}


def _own_reason(one: KnownVersion, task: str, since: str | None) -> str:
    if task in one.takes_over:
        return f"answers for {task}"
    if task in (one.learned_from or ()):
        return f"learned from rows of {task}"
    late = since is not None and (not one.created_at or one.created_at >= since)
    from_data = one.kind not in DERIVED  # derived versions know only what their parents know
    if late and from_data and one.learned_from is None and reads_the_past(one.strategy):
        # It was made before versions recorded whose rows they read, so it counts unless that can be ruled out.
        return f"may have learned from rows of {task}: it was made with {one.strategy} while the hub knew {task}"
    if late and not one.told:
        return f"it is unknown whether it learned {task}"
    return ""


def _inherited(one: KnownVersion, found: Mapping[str, tuple[str, bool]]) -> str:
    for parent, relation in one.parents:
        if parent in found:
            return f"{_WORDS.get(relation, relation)} {parent}"
    return ""


def _hearsay(one: KnownVersion, known: Mapping[str, KnownVersion], found: Mapping[str, tuple[str, bool]]) -> str:
    """Whether it learned what such a version produced about rows of another task: stored logits, or generated texts.

    Rows that were only stored with such a version come from their own task's data, and contain nothing of the task.
    """
    for source in one.read_from:
        other = known.get(source)
        if source not in found or other is None:
            continue
        if other.memory and set(one.strategy.split("+")) & set(other.strategy.split("+")):
            return f"learned from stored logits of {source}"
        if other.policy and not keeps_data(other.policy):
            return f"learned from texts generated by {source}"
    return ""


def _of_manifest(ref: str, manifest: Mapping[str, Any], path: Path, status: str, *, live: bool) -> KnownVersion:
    parents = tuple((str(e["parent"]), str(e["relation"])) for e in manifest.get("lineage", ()))
    learned, recipe = manifest.get("learned_from"), manifest.get("recipe")
    return KnownVersion(
        ref,
        str(manifest.get("kind", "")),
        str(manifest.get("task") or ""),
        status,
        str(manifest.get("created_at", "")),
        parents,
        tuple(manifest.get("takes_over") or ()),
        None if learned is None else tuple(learned),
        tuple(manifest.get("read_from") or ()),
        str(manifest.get("strategy") or ""),
        str((manifest.get("replay") or {}).get("policy") or ""),
        MEMORY in manifest.get("files", {}),
        recipe if isinstance(recipe, Mapping) and {"verb", "parents"} <= recipe.keys() else None,
        path,
        live,
        sources=sources_of(manifest),
    )


def sources_of(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Hashes of the data files that a version was trained on."""
    about = (manifest.get("training") or {}).get("data") or {}
    sha = about.get("sha256")
    return frozenset([sha] if isinstance(sha, str) and sha else [])


def _logged(registry: Registry, refs: set[str]) -> dict[str, dict[str, Any]]:
    """The log's entries about versions that have no manifest any more; later entries replace earlier ones."""
    found: dict[str, dict[str, Any]] = {ref: {} for ref in refs}
    for event in reversed(registry.events() if refs else []):
        if event.ref in found:
            found[event.ref] = {"created_at": event.at, **found[event.ref], **event.detail}
    return found


def _of_log(ref: str, row: Mapping[str, Any], partly: KnownVersion | None) -> KnownVersion:
    learned = row.get("learned_from")
    return KnownVersion(
        ref,
        str(row.get("kind", "")),
        str(row.get("task") or ""),
        created_at=str(row.get("created_at", "")),
        parents=tuple((str(parent), "came from") for parent in row.get("parents", ())),
        takes_over=tuple(row.get("takes_over") or ()),
        learned_from=None if learned is None else tuple(learned),
        read_from=tuple(row.get("read_from") or ()),
        strategy=str(row.get("strategy") or ""),
        path=partly.path if partly is not None else None,
        told="parents" in row,
    )


def _is_version(text: str) -> bool:
    try:
        return parse_ref(text).version is not None
    except UsageError:
        return False
