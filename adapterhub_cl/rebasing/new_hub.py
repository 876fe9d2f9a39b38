"""The hub on the new base: made, or gone on with where the same rebase has begun it. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import HubError, IntegrityError, UsageError
from adapterhub_cl.registry import Registry, check_local, storage_errors
from adapterhub_cl.registry.files import atomic_write_text
from adapterhub_cl.registry.hubfile import FILE_NAME as HUB_FILE
from adapterhub_cl.registry.names import refuse_in_any, refuse_inside
from adapterhub_cl.types import AdapterRecord, BaseInfo

FOLDER = "rebase"  # in the new hub: a folder for each task, with the rows that it is learned from and measured on
BEGUN = "begun.json"


@dataclass(frozen=True)
class NewHub:
    """Where the tasks go.

    Attributes:
        path: its folder, which need not exist yet.
        base: what it is bound to, or would be.
        registry: None where the hub is not made yet.
    """

    path: Path
    base: BaseInfo
    registry: Registry | None

    def moved(self) -> dict[str, AdapterRecord]:
        """Task → the version that a rebase made for it, rejected ones included; the newest."""
        if self.registry is None:
            return {}
        found = sorted(self.registry.adapters(all_versions=True), key=lambda record: record.version)
        return {record.task: record for record in found if record.task and record.manifest.get("rebased_from")}


def look(old: Registry, path: str | Path, base: BaseInfo) -> NewHub:
    """The hub that is there, or would be made; writes nothing.

    Args:
        base: the new base, as `inspect_base` found it.

    Raises:
        HubError: the hub there is bound to another base, or holds what another rebase, or somebody else, put there.
        UsageError: it is the old hub itself, or inside a hub.
    """
    place = check_local(path)
    if place.resolve() == old.path.resolve():
        raise UsageError("--to names the hub that is to be moved", "give another folder: the old hub is only read")
    refuse_inside(place, old.path, "give a folder outside of it with --to")
    if not (place / HUB_FILE).is_file():
        refuse_in_any(place, HUB_FILE, "give a folder outside of every hub with --to")
        return NewHub(place, base, None)
    there = Registry.open(place, "")
    if there.base.fingerprint != base.fingerprint:
        raise HubError(
            f"the hub at {place} is bound to the base {there.base.source}, not to {base.source}",
            "give another folder with --to, which will be made",
        )
    begun = _begun(place)
    if begun is None and there.adapters(all_versions=True):
        raise HubError(
            f"the hub at {place} has adapters already, and no rebase began it", "give a new or an empty hub with --to"
        )
    if begun is not None and any(begun.get(key) != told for key, told in identity(old).items()):
        raise HubError(
            f"the hub at {place} was begun by a rebase of another hub ({begun.get('hub')})",
            "give another folder with --to",
        )
    return NewHub(place, there.base, there)


def make(old: Registry, found: NewHub) -> Registry:
    """The hub, made with the old one's defaults where it is missing, and marked as begun by this rebase."""
    registry = found.registry or Registry.create(found.path, found.base, old.hub_file.defaults)
    folder = registry.path / FOLDER
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        if _begun(registry.path) is None:
            told = {"hub": old.path.resolve().name, **identity(old)}
            atomic_write_text(folder / BEGUN, json.dumps(told, indent=1) + "\n")
    return registry


def identity(old: Registry) -> dict[str, Any]:
    """What tells one hub from another, wherever it lies."""
    return {"base": old.base.fingerprint, "created_at": old.hub_file.created_at}


def _begun(hub: Path) -> dict[str, Any] | None:
    file = hub / FOLDER / BEGUN
    if not file.is_file():
        return None
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{file} cannot be read: {error}", "restore it, or begin again with another --to"
        ) from error
    if not isinstance(row, dict):
        raise IntegrityError(f"{file} is damaged", "begin again with another --to")
    return row
