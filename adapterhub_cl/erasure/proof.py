"""The proof: nothing in the hub belongs to a forgotten task, and no file contains bytes of its samples or tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub_cl.erasure.places import hub_versions, stream_hubs
from adapterhub_cl.erasure.plan import ErasurePlan, make_plan
from adapterhub_cl.erasure.search import Needles, search, shown
from adapterhub_cl.erasure.tombstone import Tombstone, existing
from adapterhub_cl.erasure.versions import all_known, sources_of
from adapterhub_cl.erasure.windows import SAMPLE, TENSOR, Item, Secret, Window
from adapterhub_cl.errors import AdapterError, IntegrityError, UnknownNameError, UsageError
from adapterhub_cl.registry import Registry, keys, tombstones
from adapterhub_cl.samples import rows_seen as _seen
from adapterhub_cl.traffic.journal import FILE as JOURNAL

_SHOWN = 200  # the most places to list


@dataclass(frozen=True)
class Find:
    """A remaining piece of the task.

    Attributes:
        path: of the file, relative to the hub.
        offset: of its first byte; None if it is not a piece of a file.
        what: a description.
    """

    path: str
    offset: int | None
    what: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Proof:
    """What was searched for, where, and what was found.

    Attributes:
        samples: how many were searched for; `tensors` likewise.
        passed_over: kind and state → how many cannot be searched for: `short` (too few bytes), `constant` (all the same
            number), `shared` (versions that never learned the task have the same bytes).
        windows: pieces that were searched for.
        found: what is still there; at most the first two hundred places.
    """

    task: str
    tombstones: tuple[str, ...]
    forgotten_at: str
    samples: int
    tensors: int
    windows: int
    files: int
    bytes: int
    passed_over: dict[str, int]
    found: tuple[Find, ...]

    @property
    def ok(self) -> bool:
        return not self.found

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def prove(registry: Registry, task: str, key: Path | None = None) -> Proof:
    """Search every file of the hub, its index and its journal for traces of a task, and every version's rows for its.

    Args:
        key: the key file of the tombstones; by default it is looked up in the user's configuration directory.

    Raises:
        UnknownNameError: no task of this name was forgotten.
        UsageError: the hub has the task, and has not forgotten it.
        AdapterError: its removal was interrupted, it was learned again, or a tombstone's key is missing.
        IntegrityError: one of its tombstones is damaged.
        StorageError: a file cannot be read.
    """
    stones = existing(registry, task)
    _check_readable(registry, task)
    _check_forgotten(registry, task, stones)
    left = _still_there(make_plan(registry, task))
    for stone in stones:
        if not stone.unlock(registry.path, key):
            said = f"the key of tombstones/{stone.path.name} is missing: its samples and tensors cannot be searched for"
            also = f"the registry still has {len(left)} entries of it" if left else "the registry has no entries of it"
            raise AdapterError(
                f"{said}; {also}",
                f"name its file: --key FILE; where {task} was forgotten it was {keys.default_path(registry.path)}",
            )
    windows: dict[Window, tuple[Secret, Item]] = {}
    for stone in stones:
        windows |= {window: (secret, item) for window, secret, item in stone.windows()}
    hits, searched = search(registry, Needles((window, secret) for window, (secret, _) in windows.items()))
    places: dict[tuple[str, int, str], Find] = {}
    for hit in hits:
        what = f"{hit.window.extent} bytes of a {windows[hit.window][1].kind} of {task}"
        places[hit.path, hit.offset, what] = Find(hit.path, hit.offset, what)
    found = [*left, *_that_saw(registry, stones), *sorted(places.values(), key=lambda f: (f.path, f.offset or 0))]
    items = {item.id: item for stone in stones for item in stone.items.values()}.values()
    counted = {(kind, state): 0 for kind in (SAMPLE, TENSOR) for state in ("searched", "short", "constant", "shared")}
    for item in items:
        counted[item.kind, item.state] += 1
    return Proof(
        task,
        tuple(stone.path.name for stone in stones),
        stones[-1].finished_at,
        counted[SAMPLE, "searched"],
        counted[TENSOR, "searched"],
        len(windows),
        searched.files,
        searched.bytes,
        {f"{kind} {state}": n for (kind, state), n in counted.items() if n and state != "searched"},
        tuple(found[:_SHOWN]),
    )


def _that_saw(registry: Registry, stones: list[Tombstone]) -> list[Find]:
    """The versions of other tasks that were trained on rows of the forgotten one."""
    found = []
    versions = [(one.path, one.sources) for one in all_known(registry).values() if one.path is not None]
    for hub in stream_hubs(registry.path):
        versions += [(path, sources_of(manifest)) for path, manifest in hub_versions(hub)]
    for path, sources in versions:
        rows = _seen.read(path)
        count = max(sum(stone.row_hash(row) in stone.rows for row in rows) if stone.rows else 0 for stone in stones)
        same = any(stone.row_hash(sha.encode()) in stone.sources for stone in stones for sha in sources)
        if count or same:
            what = f"trained on {count} of its rows" if count else "trained on the same data file"
            found.append(Find(shown(path, registry.path), None, f"{path.parent.name}@{path.name}, {what}"))
    return found


def _check_readable(registry: Registry, task: str) -> None:
    """Raise for a damaged tombstone that may be the task's: what it lists could not be searched for."""
    for path in tombstones.broken(registry.path):
        if tombstones.may_be_of(path, task):
            raise IntegrityError(
                f"{path} is damaged, so it is unknown what was forgotten of {task}",
                "restore it from a copy of the hub, then try again",
            )


def _check_forgotten(registry: Registry, task: str, stones: list[Tombstone]) -> None:
    known = any(one.name == task for one in registry.tasks()) or any(
        record.task == task for record in registry.adapters(all_versions=True)
    )
    again = f"cl-adapter forget-task {task}"
    if not stones and known:
        raise UsageError(f"task {task} has not been forgotten", again)
    if not stones:
        names = {row["task"] for _, row in tombstones.read_all(registry.path)}
        raise UnknownNameError("forgotten task", task, names, "" if names else "nothing was forgotten in this hub")
    if not all(stone.finished_at for stone in stones):
        raise AdapterError(f"the removal of {task} was interrupted", f"complete it: {again} --yes")
    if known:
        when = stones[-1].finished_at[:10]
        raise AdapterError(
            f"task {task} was forgotten on {when} and then learned again",
            f"forget it again: {again}",
        )


def _still_there(plan: ErasurePlan) -> list[Find]:
    """What would be removed if the task were forgotten now."""
    found = [Find(f"adapters/{v.ref.replace('@', '/')}", None, f"{v.ref} {v.why}") for v in plan.versions]
    found += [
        Find(f"adapters/{ref.replace('@', '/')}/replay.jsonl", None, f"{n} samples with the same input")
        for ref, n in plan.elsewhere.items()
    ]
    found += [Find(path, None, f"an unfinished run with data of {plan.task}") for path in plan.runs]
    found += [Find(path, None, f"a hub that has {plan.task}") for path in plan.streams]
    if plan.kept:
        found.append(Find(JOURNAL, None, f"{plan.kept} kept answers of {plan.task}"))
    if plan.evaluations:
        found.append(Find("index.db", None, f"{plan.evaluations} scores on {plan.task}"))
    return found
