"""Push: the files of versions that a store does not have, and then the signed document of each version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterError, IntegrityError, UnknownNameError, UsageError
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry, changes, parse_ref
from adapterhub_cl.registry.files import storage_errors
from adapterhub_cl.registry.names import refuse_inside
from adapterhub_cl.registry.remote_store import RemoteStore, blob, document
from adapterhub_cl.registry.samples import FILE_NAME as SAMPLES
from adapterhub_cl.sharing.shared_version import MovedVersion, SharedVersion, digest, read, without_samples, write
from adapterhub_cl.sharing.signing import SigningKey, fingerprint, signing_key
from adapterhub_cl.types import AdapterRecord


def push(
    registry: Registry, target: str, refs: Sequence[str], *, with_samples: bool = False, reporter: Reporter
) -> list[MovedVersion]:
    """Send versions to a store; what is there already is not sent again, so a push that was stopped continues.

    Args:
        refs: versions, or names for all versions of an adapter; none for the whole hub.
        with_samples: send their replay samples too.

    Raises:
        UnknownNameError: no such version.
        UsageError: the target is inside the hub, or there is nothing to push.
        AdapterError: the store has other content under the same name and number.
        IntegrityError: a version of this hub, or its document in the store, is damaged.
        StorageError: the store cannot be written.
    """
    store = RemoteStore(target)
    if store.folder is not None:
        refuse_inside(store.folder, registry.path, "push to a folder outside of it")
    records = _wanted(registry, refs)
    for record in records:
        registry.check_files(record)
    key = signing_key()
    if key.made:
        reporter.note(f"made your signing key, {key.path}; its fingerprint is {fingerprint(key.public)}")
    serving = set(registry.serving().values())
    named = {registry.get(ref).name for ref in serving}
    done = []
    with changes.operation(), reporter.piece(f"pushing to {store.url}", len(records)) as advance:
        for record in records:
            # A version that was made to serve and does not was rolled back from, if another one of its name serves.
            made_to = record.name not in named and bool(record.manifest["published"]["serve"])
            serves = record.ref in serving or made_to
            done.append(_push_one(registry, store, record, serves, with_samples, key, reporter))
            advance()
    return done


def _wanted(registry: Registry, refs: Sequence[str]) -> list[AdapterRecord]:
    """The versions, oldest first, so that parents are sent before what was made of them."""
    if not refs:
        found = registry.adapters(all_versions=True)
        if not found:
            raise UsageError("this hub has no adapters yet", "cl-adapter add-task NAME DATA trains one")
    else:
        found = []
        for ref in refs:
            parsed = parse_ref(ref)
            one = parsed.version is not None or parsed.alias is not None
            found += [registry.get(ref)] if one else registry.versions(parsed.name)
    there = {record.ref: record for record in found if record.status != "deleted"}
    return sorted(there.values(), key=lambda record: (record.created_at, record.name, record.version))


def _push_one(
    registry: Registry,
    store: RemoteStore,
    record: AdapterRecord,
    serves: bool,
    with_samples: bool,
    key: SigningKey,
    reporter: Reporter,
) -> MovedVersion:
    there = _there(store, record)
    manifest = _manifest(registry, record, with_samples)
    mine = record.manifest["files"].get(SAMPLES) or {}
    theirs = {} if there is None else there.files.get(SAMPLES) or {}
    other = bool(mine.get("bytes")) and theirs.get("sha256") != mine["sha256"]
    whole = there is not None and not (with_samples and other)
    if theirs and other and not with_samples:
        reporter.note(
            f"note: {store.url} keeps other replay samples of {record.ref} than this hub; push it --with-samples to "
            "replace them"
        )
    elif theirs and with_samples and not mine.get("bytes"):
        reporter.note(f"note: {store.url} keeps replay samples of {record.ref}, which has none in this hub")
    listed = there.files if there is not None and whole else manifest["files"]
    sent = 0
    for name, row in listed.items():
        own = record.manifest["files"].get(name)
        if store.size(blob(row["sha256"])) == row["bytes"] or own is None or own["sha256"] != row["sha256"]:
            continue
        store.put(blob(row["sha256"]), _content(record, name, row))
        sent += int(row["bytes"])
    if whole:
        return MovedVersion(record.ref, bool(sent), sent)
    text = write(manifest, _parents(registry, record), serves, key)
    if there is not None:
        if theirs and not _listed_elsewhere(store, record, theirs["sha256"]):
            store.remove(blob(theirs["sha256"]))  # before the document: what was dropped must not stay unlisted
        store.put(document(record.name, record.version), text)  # the same version, with its samples now
    elif not store.put_new(document(record.name, record.version), text):
        _there(store, record)  # refuses what another push has put there meanwhile, unless it is the same version
        return MovedVersion(record.ref, bool(sent), sent)
    return MovedVersion(record.ref, True, sent + len(text))


def _listed_elsewhere(store: RemoteStore, record: AdapterRecord, sha256: str) -> bool:
    """Whether another version in the store has the very same samples."""
    places = [(name, number) for name, numbers in store.listed().items() for number in numbers]
    for name, number in places:
        raw = None if (name, number) == (record.name, record.version) else store.read(document(name, number))
        if raw is not None and read(raw, name, number, store.url).files.get(SAMPLES, {}).get("sha256") == sha256:
            return True
    return False


def _there(store: RemoteStore, record: AdapterRecord) -> SharedVersion | None:
    """The version in the store; None if it has none of this name and number.

    Raises:
        AdapterError: it has other content.
    """
    raw = store.read(document(record.name, record.version))
    found = None if raw is None else read(raw, record.name, record.version, store.url)
    if found is not None and digest(found.manifest) != digest(record.manifest):
        raise AdapterError(
            f"{store.url} has another {record.ref}, with other content",
            f"push to another target; cl-adapter pull TARGET {record.ref} --as NAME brings that one here",
        )
    return found


def _manifest(registry: Registry, record: AdapterRecord, with_samples: bool) -> dict[str, Any]:
    """The version's manifest as it is shared: its status now, all its scores, and samples only if they are wanted."""
    scores = [stored.evaluation.to_json() for stored in registry.evaluations(record.ref)]
    manifest = {**record.manifest, "status": record.status, "evaluations": scores}
    manifest.pop("shared", None)  # where this hub had it from
    has_samples = bool(manifest["files"].get(SAMPLES, {}).get("bytes"))
    return manifest if with_samples and has_samples else without_samples(manifest)


def _parents(registry: Registry, record: AdapterRecord) -> dict[str, str]:
    found = {}
    for edge in record.manifest["lineage"]:
        try:
            found[edge["parent"]] = digest(registry.get(edge["parent"]).manifest)
        except (UsageError, UnknownNameError, AdapterError, KeyError):  # of another hub, or deleted since
            continue
    return found


def _content(record: AdapterRecord, name: str, row: Mapping[str, Any]) -> Path | bytes:
    """What is sent of a file: the path, or of samples, which may be dropped meanwhile, the checked bytes."""
    path = record.path / name
    if name != SAMPLES:
        return path
    with storage_errors(path):
        raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != row["sha256"]:
        raise IntegrityError(f"the samples of {record.ref} changed during the push", "push it again")
    return raw
