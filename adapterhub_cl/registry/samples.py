"""Replacing versions' replay samples: the one change that a version directory allows, so that data can be removed.

Order, under the hub's lock: write the intent (`pending.json`, synced: the new versions, including samples), then
samples and manifest of each version, then the index rows in one transaction, then remove the intent. After a kill
before the first samples are in place, the intent is dropped and nothing has happened; after a later kill, `finish`
completes the rest. `Registry.open` and `repair` call it if there is an intent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterError, IntegrityError, StorageError
from adapterhub_cl.registry import changes, drafts, files, manifests, shapes
from adapterhub_cl.registry.core import RegistryCore
from adapterhub_cl.registry.hubfile import HubFile
from adapterhub_cl.registry.index import Index
from adapterhub_cl.registry.shared_store import LIVE_MANIFESTS, SharedStore, needed_files
from adapterhub_cl.types import AdapterRecord

FILE_NAME, INTENT = "replay.jsonl", "pending.json"
ROUTERS = "routers"  # data of fitted routers that depends on samples, beside the index; rebuilt on demand


FORMAT = 2  # format of the intent
_OF_VERSION = ("name", "version", "sha256", "bytes", "manifest", "verb", "detail")


@dataclass(frozen=True)
class Replacement:
    """New samples for a version.

    Attributes:
        text: JSONL, rows as in `replay.jsonl`; may be empty.
        detail: for the log entry; plain JSON.
    """

    ref: str
    text: str
    detail: Mapping[str, Any] = field(default_factory=dict)


class SampleFiles(RegistryCore):
    """The replay samples of a hub's versions, as files."""

    def replace_samples(
        self, ref: str, text: str, *, verb: str = "replay-drop", detail: Mapping[str, Any] | None = None
    ) -> AdapterRecord:
        """Replace a version's replay samples: the only change that a version allows.

        A crash at any point leaves the old samples or the new ones; manifest and index match them once the hub has
        been opened again.

        Args:
            text: JSONL, rows as in `replay.jsonl`; may be empty.
            verb: the word in the log entry, which also contains `detail`.

        Raises:
            AdapterError: the version has no `replay.jsonl`.
            IntegrityError: its samples or its manifest have changed since they were recorded.
            StorageError: the disk cannot be written.
        """
        record = self.get(ref)
        self.replace_all_samples([Replacement(record.ref, text, detail or {})], verb=verb)
        return self.get(record.ref)

    def replace_all_samples(
        self, replacements: Sequence[Replacement], *, verb: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Replace the replay samples of several versions: all of them, or none.

        Args:
            defaults: entries of [defaults] in `hub.toml` that change with them; None takes one out.

        Raises:
            AdapterError, IntegrityError: as `replace_samples`, for any of them; nothing was changed.
            StorageError: the disk cannot be written; the message says whether opening the hub completes the change.
        """
        with changes.operation(), self._index.lock():
            self.finish_replacing()
            wanted = [(self.get(one.ref), one) for one in replacements]
            replace(self._index, wanted, verb, dict(defaults or {}), self.shared)
            self.hub_file = HubFile.read(self.path)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the hub's lock over several calls: no other process can write to the hub meanwhile."""
        with self._index.lock():
            self.finish_replacing()
            yield

    def discard_deleted_samples(self, name: str) -> int:
        """Remove the `replay.jsonl` of an adapter's deleted versions, whose directories wait for `gc`; returns how
        many."""
        with self._index.lock():
            with self._index.reading() as query:
                deleted = query("SELECT version FROM versions WHERE name = :name AND status = 'deleted'", name=name)
                if self.shared is not None:
                    needed = needed_files(found[0] for found in query(LIVE_MANIFESTS))
                    for number in set(self.shared.numbers(name)) & {row[0] for row in deleted}:
                        self.shared.drop(name, number, needed)  # whole: its files could not be fetched any more
            paths = [self.adapters_dir / name / f"v{row[0]}" / FILE_NAME for row in deleted]
            there = [path for path in paths if path.is_file() or path.is_symlink()]
            for path in there:
                files.remove_tree(path)
        return len(there)

    def finish_replacing(self) -> str | None:
        """Complete or drop an interrupted replacement; returns what was done. Costs one file check if there is none."""
        return finish(self.path, self.adapters_dir, self._index)


def read(record: AdapterRecord) -> list[str]:
    """The lines of a version's samples, checked against their hash; none if the version has no samples.

    Raises:
        IntegrityError: the file is missing or has changed since it was recorded.
    """
    about = record.manifest["files"].get(FILE_NAME)
    if about is None:
        return []
    path = record.path / FILE_NAME
    hint = "restore it from a copy of the hub; see cl-adapter verify"
    try:
        if path.is_symlink():
            raise IntegrityError(f"{path} is a link", hint)
        raw = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}", hint) from error
    if hashlib.sha256(raw).hexdigest() != about["sha256"]:
        raise IntegrityError(f"{path} of {record.ref}: changed: its SHA-256 differs from the recorded one", hint)
    return [line for line in raw.decode().split("\n") if line.strip()]


def replace(
    index: Index,
    wanted: Sequence[tuple[AdapterRecord, Replacement]],
    verb: str,
    defaults: Mapping[str, Any],
    shared: SharedStore | None = None,
) -> None:
    """Replace the samples of versions; see `Registry.replace_all_samples`."""
    rows = [_row(record, one, verb) for record, one in wanted]
    if not rows:
        if defaults:
            _set_defaults(index.hub, defaults)
        return
    if shared is not None:
        _replace_shared(index, shared, rows, defaults)
        return
    intent = {"format": FORMAT, "versions": rows, "defaults": dict(defaults)}
    pending = index.hub / INTENT
    files.atomic_write_bytes(pending, (json.dumps(intent, ensure_ascii=False) + "\n").encode(), lasting=False)
    drafts.fault("intent written")
    directories = [record.path for record, _ in wanted]
    try:
        _carry_on(index, directories, intent)
    except StorageError as error:
        if _begun(directories, rows):
            error.message = f"{error.message.partition(';')[0]}; opening the hub again will complete the change"
            error.args = (error.message,)
            raise
        pending.unlink(missing_ok=True)
        raise
    except BaseException:
        if not _begun(directories, rows):
            pending.unlink(missing_ok=True)
        raise


def _replace_shared(
    index: Index, shared: SharedStore, rows: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> None:
    """Replace samples in a shared store: the rows change in one transaction, then the manifests follow, which `repair`
    completes, and the old samples go. Copies on other machines are fetched again when they are next used."""
    for row in rows:
        shared.put_text(row["text"])
    drafts.fault("samples uploaded")
    _record(index, rows)
    drafts.fault("row updated")
    with index.reading() as query:
        needed = needed_files(found[0] for found in query(LIVE_MANIFESTS))
    for row in rows:
        files.remove_tree(shared.folder / row["name"] / f"v{row['version']}")
        shared.follow(row["name"], row["version"], row["manifest"], needed)
    if defaults:
        _set_defaults(index.hub, defaults)
    files.remove_tree(index.hub / ROUTERS)


def _row(record: AdapterRecord, wanted: Replacement, verb: str) -> dict[str, Any]:
    """The part of the intent that describes one version."""
    text = wanted.text
    if text:
        read(record)  # a changed file must not be made to look valid; an empty one may replace it
    manifest, old = manifests.read(record.path)
    if FILE_NAME not in manifest["files"]:
        raise AdapterError(f"{record.ref} has no replay samples", "see cl-adapter replay list")
    if json.loads(old) != dict(record.manifest):
        raise IntegrityError(f"{record.path / manifests.FILE_NAME} has changed", "see cl-adapter verify")
    raw = text.encode()
    about = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    manifest["files"][FILE_NAME] = about
    manifest["bytes"] = sum(int(row["bytes"]) for row in manifest["files"].values())
    manifest["replay"] = {**manifest.get("replay", {}), "samples": sum(1 for line in text.split("\n") if line.strip())}
    return {
        "name": record.name,
        "version": record.version,
        **about,
        "manifest": manifests.dump(manifest),
        "verb": verb,
        "detail": dict(wanted.detail),
        "text": text,
    }


def _is_in_place(directory: Path, row: Mapping[str, Any]) -> bool:
    samples = directory / FILE_NAME
    return samples.is_file() and files.sha256_file(samples) == row["sha256"]


def _begun(directories: Sequence[Path], rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(_is_in_place(directory, row) for directory, row in zip(directories, rows, strict=True))


def is_pending(hub: Path) -> bool:
    """Whether a replacement was interrupted, or is in progress."""
    return (hub / INTENT).exists()


def finish(hub: Path, store: Path, index: Index) -> str | None:
    """Complete or drop what an interrupted `replace` left; returns what was done, or None if nothing was left.

    Raises:
        StorageError: the disk cannot be written.
    """
    pending = hub / INTENT
    if not pending.exists():
        return None
    with index.lock():
        if not pending.exists():
            return None  # the process that was working on it has finished
        intent = _read_intent(pending)
        rows = [row for row in intent.get("versions", ()) if (store / row["name"] / f"v{row['version']}").is_dir()]
        directories = [store / row["name"] / f"v{row['version']}" for row in rows]
        for path in {found for at in directories for found in at.parent.glob(f"{files.TEMPORARY}*")}:
            if files.is_leftover(path) and path.is_file():
                files.remove_tree(path)
        refs = ", ".join(f"{row['name']}@v{row['version']}" for row in rows)
        if _begun(directories, rows):
            _carry_on(index, directories, {**intent, "versions": rows})
            return f"completed the replacement of the samples of {refs}"
        with files.storage_errors(pending):
            pending.unlink()
        return f"dropped the replacement of the samples of {refs}, which had not begun" if refs else "dropped pending"


def _carry_on(index: Index, directories: Sequence[Path], intent: Mapping[str, Any]) -> None:
    """Carry out the intent; every step may have been done before."""
    pending, rows = index.hub / INTENT, intent["versions"]
    for directory, row in zip(directories, rows, strict=True):
        if not _is_in_place(directory, row):
            if row["text"] is None:
                raise IntegrityError(
                    f"{directory / FILE_NAME} matches neither the old nor the new samples", "see cl-adapter verify"
                )
            _swap(directory / FILE_NAME, row["text"].encode(), "samples written")
        drafts.fault("samples replaced")
        manifest = directory / manifests.FILE_NAME
        if not manifest.is_file() or manifest.read_bytes() != row["manifest"].encode():
            _swap(manifest, row["manifest"].encode(), "manifest written")
        drafts.fault("manifest replaced")
    if intent["defaults"]:
        _set_defaults(index.hub, intent["defaults"])
    _record(index, rows)
    drafts.fault("row updated")
    files.remove_tree(index.hub / ROUTERS)  # contains hidden states of samples that have been removed
    with files.storage_errors(pending):
        pending.unlink()
        files.fsync_dir(index.hub)


def _set_defaults(hub: Path, defaults: Mapping[str, Any]) -> None:
    hub_file = HubFile.read(hub)
    for key, value in defaults.items():
        hub_file = hub_file.with_default(key, value)
    hub_file.write(hub)


def _record(index: Index, intended: Sequence[Mapping[str, Any]]) -> None:
    from sqlalchemy import update

    from adapterhub_cl.registry import schema, writes

    v = schema.versions
    with index.writing() as connection:
        for row in intended:
            text = row["manifest"]
            digest = hashlib.sha256(text.encode()).hexdigest()
            here = (v.c.name == row["name"]) & (v.c.version == row["version"]) & (v.c.status != "deleted")
            values = {"manifest": text, "manifest_sha256": digest, "bytes": json.loads(text)["bytes"]}
            changed = connection.execute(update(v).where(here, v.c.manifest_sha256 != digest).values(values)).rowcount
            if changed:
                writes.add_event(connection, row["verb"], f"{row['name']}@v{row['version']}", row["detail"])


def _swap(path: Path, data: bytes, point: str) -> None:
    """Replace a read-only file of a version; the temporary file is beside the version, where `repair` finds it."""
    temporary = path.parent.parent / files.temporary_name()
    with files.storage_errors(path):
        try:
            files.write_synced(temporary, data)
            temporary.chmod(0o444)
            drafts.fault(point)
            temporary.replace(path)
            changes.happened()
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        files.fsync_dir(path.parent)


def _read_intent(pending: Path) -> dict[str, Any]:
    """The intent; empty if it is unreadable, so that it is dropped."""
    try:
        found = shapes.parse(pending.read_text(encoding="utf-8"))
        if "versions" not in found:  # the older format: one version, without the samples
            found = {"versions": [{**found, "text": None}], "defaults": {}}
        for row in found["versions"]:
            directory = Path("/") / str(row["name"]) / f"v{row['version']}"
            wrong = [*manifests._wrong(shapes.parse(row["manifest"]), directory)]
            if wrong or not row.keys() >= set(_OF_VERSION) or not isinstance(row["text"], str | None):
                return {}
            if row["text"] is not None and hashlib.sha256(row["text"].encode()).hexdigest() != row["sha256"]:
                return {}
        whole = isinstance(found["defaults"], dict)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found if whole else {}
