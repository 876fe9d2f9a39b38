"""A tombstone has hashes of a task's samples, rows, tensors and files; names and counts; no texts, no scores.

All hashes use the hub's key (`registry.keys`), which is not stored in the hub.
"""

from __future__ import annotations

import hmac
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.erasure.places import hub_versions, knows_of, run_folders, stream_hubs
from adapterhub_cl.erasure.plan import ErasurePlan, examples_of_task
from adapterhub_cl.erasure.search import Needles, search_files, shown
from adapterhub_cl.erasure.windows import Item, Secret, Window, of_sample, of_tensors
from adapterhub_cl.registry import Registry, files, keys, manifests, tombstones
from adapterhub_cl.registry.keys import Key
from adapterhub_cl.types import Example

_WEIGHTS = ".safetensors"


@dataclass
class Tombstone:
    """One removal, in progress or done. Saved after each step, so that it can continue after a crash.

    Attributes:
        since: when the hub first recorded the task.
        versions: reference → {why, does, replacement}.
        key: the id of the key of its hashes; empty for a tombstone from before there were keys.
        secret: what its hashes are made with; None if the key was not found: then nothing can be searched for.
        items: hash → what is searched for.
        hashes: path relative to the hub → keyed SHA-256 of each file to remove.
        rows: keyed hashes of the rows that the task was trained on.
        sources: keyed hashes of the files that it was trained on.
        everywhere: whether versions of other tasks that saw its rows are removed too; None if there were none.
    """

    path: Path
    task: str
    started_at: str
    salt: bytes
    key: str = ""
    secret: Secret | None = None
    since: str | None = None
    finished_at: str = ""
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    rows: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    everywhere: bool | None = None
    locked: list[Any] = field(default_factory=list)

    @classmethod
    def begin(cls, hub: Path, task: str, since: str | None, key: Key) -> Tombstone:
        """A new one; nothing is written yet."""
        path, salt = tombstones.free_path(hub, task), secrets.token_bytes(16)
        return cls(path, task, files.now(), salt, key.id, Secret(salt, key.secret), since)

    @classmethod
    def read(cls, path: Path, row: Mapping[str, Any]) -> Tombstone:
        """A stored one; it needs `unlock` with its key, unless it has none."""
        found = cls(
            path,
            row["task"],
            row["started_at"],
            bytes.fromhex(row["salt"]),
            row.get("key", ""),
            None,
            row["since"],
            row["finished_at"],
            {version["ref"]: {k: v for k, v in version.items() if k != "ref"} for version in row["versions"]},
            {},
            dict(row["files"]),
            list(row["folders"]),
            dict(row["counts"]),
            list(row["tasks_without_adapter"]),
            set(row.get("rows", ())),
            set(row.get("sources", ())),
            row.get("everywhere"),
            list(row["items"]),
        )
        if not found.key:
            found._open(Secret(found.salt))
        return found

    def _open(self, secret: Secret) -> None:
        self.secret = secret
        self.items = {item.id: item for row in self.locked if (item := Item.from_json(row, secret))}
        self.locked = []

    def unlock(self, hub: Path, given: Path | None) -> bool:
        """Find its key and prepare its hashes; returns whether the key was found.

        Args:
            given: the key file, if the user names one.

        Raises:
            AdapterError, UsageError: that file holds another key, or none.
        """
        if self.secret is None and (key := keys.find(hub, self.key, given)) is not None:
            self._open(Secret(self.salt, key.secret))
        return self.secret is not None

    def start_anew(self, key: Key) -> None:
        """Use another key because its own is lost: what was hashed before cannot be searched for any more."""
        self.key, self.secret = key.id, Secret(self.salt, key.secret)
        self.items, self.hashes, self.rows, self.sources, self.locked = {}, {}, set(), set(), []

    def strengthen(self, key: Key) -> None:
        """Add a key to one from before there were keys."""
        secret = Secret(self.salt, key.secret)
        self.items = {item.id: item for old in self.items.values() if (item := old.under(secret))}
        self.hashes = {path: secret.wrapped(sha) for path, sha in self.hashes.items()}
        self.key, self.secret = key.id, secret

    def save(self) -> None:
        """Write the current state.

        Raises:
            StorageError: the disk cannot be written.
        """
        row = {
            "format": tombstones.FORMAT,
            "task": self.task,
            "state": tombstones.DONE if self.finished_at else tombstones.REMOVING,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "since": self.since,
            "versions": [{"ref": ref, **version} for ref, version in self.versions.items()],
            "folders": self.folders,
            "counts": self.counts,
            "tasks_without_adapter": self.without,
            "salt": self.salt.hex(),
            "key": self.key,
            "everywhere": self.everywhere,
            "rows": sorted(self.rows),
            "sources": sorted(self.sources),
            "items": self.locked if self.secret is None else [i.to_json(self.secret) for i in self.items.values()],
            "files": self.hashes,
        }
        tombstones.write(self.path, row)

    @property
    def replacements(self) -> dict[str, str]:
        """Version → its replacement."""
        return {ref: row["replacement"] for ref, row in self.versions.items() if row["replacement"]}

    def windows(self) -> Iterator[tuple[Window, Secret, Item]]:
        """Everything to search for."""
        if self.secret is None:
            return
        for item in self.items.values():
            for group in item.groups:
                for window in group:
                    yield window, self.secret, item

    def row_hash(self, row: bytes) -> str:
        """The hash of a row or a data file in this tombstone."""
        assert self.secret is not None
        return hmac.digest(self.secret.key or self.salt, row, "sha256").hex()[:16]

    def tally(self, kind: str) -> Counter[str]:
        """How many samples, or tensors, are in each state."""
        return Counter(item.state for item in self.items.values() if item.kind == kind)


def existing(registry: Registry, task: str) -> list[Tombstone]:
    """All tombstones of a task, oldest first."""
    return [Tombstone.read(path, row) for path, row in tombstones.read_all(registry.path) if row["task"] == task]


def take_hashes(stone: Tombstone, registry: Registry, plan: ErasurePlan) -> None:
    """Add to a tombstone everything to be removed that still exists.

    Windows that also occur in what stays are left out, because they do not belong only to the task. Only other
    versions and runs count as staying, not every file: a copy that somebody put into the hub should be found.
    """
    hub, store = registry.path, registry.adapters_dir
    versions = {ref: store / ref.replace("@", "/") for ref in stone.versions}
    tasks = {version.ref: version.task for version in plan.versions}
    folders = [hub / name for name in (*plan.runs, *plan.streams, *plan.others)]
    gone = [*versions.values(), *folders]
    own = [(path, tasks.get(ref, "")) for ref, path in versions.items()]
    within = [
        (path, plan.task, manifest)
        for name in plan.streams
        for path, manifest in hub_versions(hub / name)
        if knows_of(manifest, plan.task)
    ]
    own += [(path, str(manifest.get("task") or "")) for path, _, manifest in within]
    weights = [*versions.values(), *(path for path, _, _ in within), *(hub / name for name in plan.runs)]
    examples = examples_of_task(plan.task, own, [hub / name for name in plan.runs])
    secret = stone.secret
    assert secret is not None  # the removal has made sure of it
    found = {item.id: item for item in _items(hub, examples, weights, secret) if item.id not in stone.items}
    windows = {window for item in found.values() for group in item.groups for window in group}
    if windows:
        needles = Needles((window, secret) for window in windows)
        hits, _ = search_files(((shown(path, hub), path) for path in _staying(registry, stone)), needles)
        there = {hit.window for hit in hits}
        found = {name: item.without(there) for name, item in found.items()}
    stone.items |= found
    for place in gone:
        for path in [place] if place.is_file() else files.walk_files(place)[0].values() if place.is_dir() else ():
            name = shown(path, hub)
            if name not in stone.hashes:
                stone.hashes[name] = secret.wrapped(files.sha256_file(path))
    stone.rows |= {stone.row_hash(row) for row in plan.rows}
    stone.sources |= {stone.row_hash(sha.encode()) for sha in plan.sources}


def _staying(registry: Registry, stone: Tombstone) -> Iterator[Path]:
    """The files of versions and runs, in this hub and the hubs inside it, that are unrelated to the task."""
    hub = registry.path
    for record in registry.adapters(all_versions=True):
        if record.ref not in stone.versions:
            yield record.path / manifests.FILE_NAME
            yield from (record.path / name for name in record.manifest["files"])
    within = [path for path in stream_hubs(hub) if shown(path, hub) not in stone.folders]
    folders = [path for inner in within for path, _ in hub_versions(inner)]
    folders += [path for path in run_folders(registry.runs_dir) if shown(path, hub) not in stone.folders]
    for folder in folders:
        yield from files.walk_files(folder)[0].values()


def _items(hub: Path, examples: Iterable[Example], places: Iterable[Path], secret: Secret) -> Iterator[Item]:
    yield from (of_sample(example, secret) for example in examples)
    for place in places:
        for path in sorted(place.glob(f"**/*{_WEIGHTS}")) if place.is_dir() else ():
            if path.is_file() and not path.is_symlink():
                yield from of_tensors(path, shown(path, hub), secret)
