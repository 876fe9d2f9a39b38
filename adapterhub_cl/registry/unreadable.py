"""Versions with an unreadable `manifest.json`: restored from the index if possible, otherwise their number is reserved.

The index has every manifest's text and SHA-256. If the two match, a damaged file is restored from them. If the index
has no such text either, a rebuilt index lacks the version; a log entry (`unreadable`) then keeps its number from being
used again, and records its aliases and tasks, so that it gets them back once its manifest is readable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.registry import files, manifests, schema, shapes, writes
from adapterhub_cl.registry.index import Query, Row
from adapterhub_cl.registry.names import is_name
from adapterhub_cl.registry.writes import READABLE, UNREADABLE
from adapterhub_cl.types import LATEST

_SQL = "SELECT name, version, manifest_sha256, manifest FROM versions WHERE status <> 'deleted' ORDER BY name, version"


def in_index(directory: Path, digest: Any, text: Any) -> bool:
    """Whether the index has the recorded manifest of a version, and may restore the file from it.

    A readable file is replaced only if all other files match the recorded manifest.
    """
    if not isinstance(text, str) or hashlib.sha256(text.encode(errors="replace")).hexdigest() != digest:
        return False
    path = directory / manifests.FILE_NAME
    if directory.is_symlink() or not directory.is_dir() or (path.is_dir() and not path.is_symlink()):
        return False
    try:
        recorded = manifests.parse(text, path)
    except IntegrityError:
        return False
    try:
        manifests.read(directory)
    except IntegrityError:
        return True
    return not any(manifests.differences(directory, recorded["files"]))


def recorded(query: Query) -> list[Row]:
    """For every version that is not deleted: name, version, SHA-256 of its manifest, and the manifest's text."""
    return query(_SQL)


def write_back(store: Path, recorded: Sequence[Row], *, changed: bool = False) -> list[Path]:
    """Restore unreadable manifests from the index; needs the hub's lock.

    Args:
        recorded: what the index has, see `recorded`.
        changed: also restore readable ones that differ from what was recorded.

    Returns:
        The files that were written.

    Raises:
        StorageError: the disk cannot be written.
    """
    written = []
    for name, version, digest, text in recorded:
        if not isinstance(name, str) or not is_name(name) or not shapes.is_count(version, least=1):
            continue
        directory = store / name / f"v{version}"
        path = directory / manifests.FILE_NAME
        if not _is_wrong(directory, digest, changed) or not in_index(directory, digest, text):
            continue
        files.atomic_write_text(path, text)
        path.chmod(0o444)
        written.append(path)
    return written


def _is_wrong(directory: Path, digest: Any, changed: bool) -> bool:
    try:
        _, text = manifests.read(directory)
    except IntegrityError:
        return True
    return changed and hashlib.sha256(text.encode()).hexdigest() != digest


def keep_place(connection: Connection, store: Path, told: Mapping[str, Any]) -> list[str]:
    """Reserve the number of every version that `aliases.json` or the store contains and the index does not.

    Args:
        told: the content of `aliases.json`; empty if it is unreadable.

    Returns:
        The versions, `name@vN`, whose numbers were not reserved before.
    """
    v, e = schema.versions.c, schema.events.c
    there = {(row[0], row[1]) for row in connection.execute(select(v.name, v.version))}
    noted = set(connection.scalars(select(e.ref).where(e.verb == UNREADABLE)))
    wanted = set()
    for name, version in _of(told, "known").items():
        if shapes.is_a_name(name) and shapes.is_count(version, shapes.LAST_VERSION, least=1):
            wanted.add((name, version))
    for directory in store.glob("*/v*") if store.is_dir() else ():
        found = shapes.version_of(f"{directory.parent.name}@{directory.name}")
        if found is not None and directory.is_dir() and not directory.is_symlink():
            wanted.add(found)
    kept = []
    for name, version in sorted(wanted - there):
        ref = f"{name}@v{version}"
        if ref in noted:
            continue
        # A missing directory may be restored later; it is then adopted like a manifest that became readable.
        aliases = _of(told, "aliases").get(name)
        held = [a for a, number in aliases.items() if number == version] if isinstance(aliases, dict) else []
        served = [task for task, by in _of(told, "serving").items() if by == ref]
        writes.add_event(connection, UNREADABLE, ref, {"aliases": held, "serving": served})
        kept.append(ref)
    return kept


def _of(told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = told.get(key)
    return part if isinstance(part, dict) else {}


def give_back(connection: Connection, manifest: Mapping[str, Any]) -> None:
    """Give a version that has become readable, and has its rows, its aliases and tasks back, unless something else has
    taken them. Does nothing for any other version."""
    e, a, s = schema.events.c, schema.aliases.c, schema.serving.c
    name, version = manifest["name"], manifest["version"]
    ref = f"{name}@v{version}"
    lines = connection.execute(
        select(e.verb, e.detail).where(e.ref == ref, e.verb.in_((UNREADABLE, READABLE))).order_by(e.id)
    ).all()
    if not lines or lines[-1][0] == READABLE:
        return
    try:
        detail = json.loads(lines[-1][1])
    except ValueError:
        detail = {}
    writes.apply_moves(connection, manifest, replay=True)
    for alias in detail.get("aliases", ()):
        taken = connection.scalar(select(a.version).where(a.name == name, a.alias == alias))
        if taken is None and alias != LATEST and shapes.is_an_alias(alias):
            writes.move_alias(connection, name, alias, version, READABLE)
    for task in detail.get("serving", ()):
        by = connection.scalar(select(s.name).where(s.task == task))
        if by in (None, name) and shapes.is_a_name(task) and not writes.production_serves(connection, task):
            writes.set_serving(connection, task, name, version)
    writes.add_event(connection, READABLE, ref)
