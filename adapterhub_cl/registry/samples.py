"""Replacing a version's replay samples: the one change that a version directory allows, so that data can be removed.

Order, under the hub's lock: the intent (`pending.json`, synced: what the version will be), the samples, the manifest,
the index row, the intent removed. Stopped before the samples are in place, the intent is dropped and nothing has
happened; stopped after that, `finish` carries on. `Registry.open` and `repair` call it where an intent is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterError, IntegrityError
from adapterhub_cl.registry import drafts, files, manifests
from adapterhub_cl.registry.core import Core
from adapterhub_cl.registry.index import Index
from adapterhub_cl.types import AdapterRecord

FILE_NAME, INTENT = "replay.jsonl", "pending.json"
ROUTERS = "routers"  # what fitted routers know of samples, beside the index; made again when it is needed


class SampleFiles(Core):
    """The replay samples of a hub's versions, as files."""

    def replace_samples(
        self, ref: str, text: str, *, verb: str = "replay-drop", detail: Mapping[str, Any] | None = None
    ) -> AdapterRecord:
        """Put other replay samples in the place of a version's: the only change that a version allows.

        A crash at any point leaves the old samples or the new ones, with manifest and index to match once the hub is
        opened again.

        Args:
            text: JSONL, rows as in `replay.jsonl`; may be empty.
            verb: the word in the log; `detail` stands beside it.

        Raises:
            AdapterError: the version has no `replay.jsonl`.
            IntegrityError: its samples or its manifest are not what was written.
            StorageError: the disk refused.
        """
        with self._index.lock():
            self.finish_replacing()
            record = self.get(ref)
            replace(self._index, record, text, verb, detail or {})
        return self.get(record.ref)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the hub's lock over several calls: no other process writes to the hub meanwhile."""
        with self._index.lock():
            self.finish_replacing()
            yield

    def discard_deleted_samples(self, name: str) -> int:
        """Remove the `replay.jsonl` of an adapter's deleted versions, whose directories wait for `gc`; how many."""
        with self._index.lock():
            with self._index.reading() as query:
                deleted = query("SELECT version FROM versions WHERE name = :name AND status = 'deleted'", name=name)
            paths = [self.adapters_dir / name / f"v{row[0]}" / FILE_NAME for row in deleted]
            there = [path for path in paths if path.is_file() or path.is_symlink()]
            for path in there:
                files.remove_tree(path)
        return len(there)

    def finish_replacing(self) -> str | None:
        """Complete or drop an interrupted replacement; what was done. Costs one look where there is none."""
        return finish(self.path, self.adapters_dir, self._index)


def read(record: AdapterRecord) -> list[str]:
    """The lines of a version's samples, checked against their hash; none where the version keeps none.

    Raises:
        IntegrityError: the file is missing or is not the one that was written.
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
        raise IntegrityError(f"{path} of {record.ref}: changed: its SHA-256 is not the one that was written", hint)
    return [line for line in raw.decode().split("\n") if line.strip()]


def replace(index: Index, record: AdapterRecord, text: str, verb: str, detail: Mapping[str, Any]) -> None:
    """Put `text` (JSONL) in the place of the version's samples; see `Registry.replace_samples`."""
    if text:
        read(record)  # a file that is not as it was written is not to become one that is; an empty one may replace it
    manifest, old = manifests.read(record.path)
    if FILE_NAME not in manifest["files"]:
        raise AdapterError(f"{record.ref} keeps no replay samples", "see cl-adapter replay list")
    if json.loads(old) != dict(record.manifest):
        raise IntegrityError(f"{record.path / manifests.FILE_NAME} is not the one recorded", "see cl-adapter verify")
    raw = text.encode()
    about = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    manifest["files"][FILE_NAME] = about
    manifest["bytes"] = sum(int(row["bytes"]) for row in manifest["files"].values())
    manifest["replay"] = {**manifest.get("replay", {}), "samples": sum(1 for line in text.split("\n") if line.strip())}
    intent = {
        "name": record.name,
        "version": record.version,
        **about,
        "manifest": manifests.dump(manifest),
        "verb": verb,
        "detail": dict(detail),
    }
    pending = index.hub / INTENT
    files.atomic_write_text(pending, json.dumps(intent, ensure_ascii=False) + "\n")
    drafts.fault("intent written")
    try:
        _swap(record.path / FILE_NAME, raw, "samples written")
    except BaseException:
        if files.sha256_file(record.path / FILE_NAME) != about["sha256"]:
            pending.unlink(missing_ok=True)
        raise
    drafts.fault("samples replaced")
    _carry_on(index, record.path, intent)


def is_pending(hub: Path) -> bool:
    """Whether a replacement was interrupted, or is just going on."""
    return (hub / INTENT).exists()


def finish(hub: Path, store: Path, index: Index) -> str | None:
    """Complete, or drop, what an interrupted `replace` left; what was done, or None where nothing was left.

    Raises:
        StorageError: the disk refused.
    """
    pending = hub / INTENT
    if not pending.exists():
        return None
    with index.lock():
        if not pending.exists():
            return None  # the process that was at it has finished
        intent = _read_intent(pending)
        directory = store / str(intent.get("name")) / f"v{intent.get('version')}"
        if intent and directory.is_dir():
            for path in directory.parent.glob(f"{files.TEMPORARY}*"):
                if files.is_leftover(path) and path.is_file():
                    files.remove_tree(path)
        samples = directory / FILE_NAME
        ref = f"{intent.get('name')}@v{intent.get('version')}"
        if intent and samples.is_file() and files.sha256_file(samples) == intent["sha256"]:
            _carry_on(index, directory, intent)
            return f"completed the replacement of the samples of {ref}"
        with files.storage_errors(pending):
            pending.unlink()
        return f"dropped the replacement of the samples of {ref}, which had not begun" if intent else "dropped pending"


def _carry_on(index: Index, directory: Path, intent: Mapping[str, Any]) -> None:
    """From the samples in place to the end; every step may have been done before."""
    text, pending = intent["manifest"], index.hub / INTENT
    _swap(directory / manifests.FILE_NAME, text.encode(), "manifest written")
    drafts.fault("manifest replaced")
    _record(index, intent)
    drafts.fault("row updated")
    files.remove_tree(index.hub / ROUTERS)  # it holds the hidden states of samples that are gone now
    with files.storage_errors(pending):
        pending.unlink()
        files.fsync_dir(index.hub)


def _record(index: Index, intent: Mapping[str, Any]) -> None:
    from sqlalchemy import update

    from adapterhub_cl.registry import rows, schema

    text, v = intent["manifest"], schema.versions
    digest = hashlib.sha256(text.encode()).hexdigest()
    here = (v.c.name == intent["name"]) & (v.c.version == intent["version"]) & (v.c.status != "deleted")
    with index.writing() as connection:
        values = {"manifest": text, "manifest_sha256": digest, "bytes": json.loads(text)["bytes"]}
        changed = connection.execute(update(v).where(here, v.c.manifest_sha256 != digest).values(values)).rowcount
        if changed:
            rows.add_event(connection, intent["verb"], f"{intent['name']}@v{intent['version']}", intent["detail"])


def _swap(path: Path, data: bytes, point: str) -> None:
    """Replace a read-only file of a version; the temporary one lies beside the version, where `repair` finds it."""
    temporary = path.parent.parent / files.temporary_name()
    with files.storage_errors(path):
        try:
            files.write_synced(temporary, data)
            temporary.chmod(0o444)
            drafts.fault(point)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        files.fsync_dir(path.parent)


def _read_intent(pending: Path) -> dict[str, Any]:
    """The intent; empty where it cannot be read as one, so that it is dropped."""
    try:
        found = json.loads(pending.read_text(encoding="utf-8"))
        directory = Path("/") / str(found["name"]) / f"v{found['version']}"
        wrong = "; ".join(manifests._wrong(json.loads(found["manifest"]), directory))
        whole = {"sha256", "verb", "detail"} <= found.keys() and not wrong
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found if whole else {}
