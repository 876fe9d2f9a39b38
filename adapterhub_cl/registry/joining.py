"""Which hub a database on a server belongs to: recorded when the first folder is made, checked by every other one."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import HubError
from adapterhub_cl.registry.hubfile import FILE_NAME, HubFile
from adapterhub_cl.registry.index import Index
from adapterhub_cl.registry.names import refuse_in_any, refuse_inside
from adapterhub_cl.registry.postgres import PostgresIndex
from adapterhub_cl.registry.shared_store import SharedStore


def check_place(shared: SharedStore, hub: Path) -> None:
    """Raise UsageError for a store that is a folder inside a hub, the one that is being made or another."""
    if (folder := shared.remote.folder) is not None:
        hint = "give --store a folder outside of every hub: local:///mnt/store"
        refuse_inside(folder, hub, hint)
        refuse_in_any(folder, FILE_NAME, hint)


def look(index: Index, hub: Path, hub_file: HubFile) -> None:
    """Raise what `begin` would raise for a server that cannot be used or that has another hub, before a folder is made.

    Raises:
        HubError, StorageError: see `begin`.
    """
    if isinstance(index, PostgresIndex) and index.revision() is not None and (there := index.identity()):
        _check_same(index, there, hub, hub_file)


def begin(index: Index, hub: Path, hub_file: HubFile, shared: SharedStore | None) -> HubFile:
    """Make the tables of a hub's index on a server, or join the hub that has them; needs the index's lock.

    Args:
        hub: the folder that is being made.
        hub_file: what its `hub.toml` is going to say.
        shared: its store, which is claimed before the database names it.

    Returns:
        The same, with the time at which the hub was first made.

    Raises:
        HubError: the database belongs to a hub of another base, with another store, or without a shared one.
        StorageError: the server cannot be reached, or refuses.
    """
    if not isinstance(index, PostgresIndex):
        if shared is not None:
            shared.claim(hub_file)
        return hub_file
    index.migrate()
    there = index.identity()
    if not there:
        if shared is not None:
            shared.claim(hub_file)
        index.introduce(_identity(hub, hub_file))
        return hub_file
    _check_same(index, there, hub, hub_file)
    hub_file = replace(hub_file, created_at=str(there["created_at"]))
    if shared is not None:
        shared.claim(hub_file)
    return hub_file


def check(index: Index, hub_file: HubFile) -> None:
    """Raise HubError if the database belongs to another hub than the folder."""
    if not isinstance(index, PostgresIndex):
        return
    there = index.identity()
    if there:
        _check_base(index, there, hub_file)
    if there and there.get("created_at") != hub_file.created_at:
        raise HubError(
            f"the index {index.where} belongs to another hub, made at {str(there.get('created_at'))[:19]}",
            f"correct [index] url in {index.hub / 'hub.toml'}, or make a new folder that joins it: cl-adapter init",
        )


def reintroduce(index: Index, hub: Path, hub_file: HubFile) -> None:
    """Record the hub in a database that was made anew, after a rebuild."""
    if isinstance(index, PostgresIndex) and not index.identity():
        index.introduce(_identity(hub, hub_file))


def _check_same(index: PostgresIndex, there: dict[str, Any], hub: Path, hub_file: HubFile) -> None:
    """Raise HubError if the database belongs to a hub of another base, with another store, or without a shared one."""
    _check_base(index, there, hub_file)
    mine = _store(hub, hub_file)
    if there.get("store") != mine:
        kept = str(there.get("store"))
        if hub_file.is_shared and not kept.startswith("file:"):
            hint = f"join it with --store {kept}, or use another database"
            raise HubError(f"the index {index.where} belongs to a hub with the store {kept}", hint)
        raise HubError(
            f"the index {index.where} belongs to another hub, whose versions are in {kept.removeprefix('file:')}",
            "use another database for each hub; machines that share one need --store, such as s3://bucket/prefix",
        )


def _check_base(index: PostgresIndex, there: dict[str, Any], hub_file: HubFile) -> None:
    theirs, base = (str(there.get("fingerprint")), str(there.get("quantization"))), hub_file.base
    if theirs != (base.fingerprint, base.quantization):
        raise HubError(
            f"the index {index.where} belongs to a hub of another base ({there.get('base')}, {theirs[1]}, fingerprint "
            f"{theirs[0][:12]}; this one is {base.source}, {base.quantization}, {base.fingerprint[:12]})",
            "use that base and --quantization, or another database",
        )


def _identity(hub: Path, hub_file: HubFile) -> dict[str, Any]:
    base = hub_file.base
    return {
        "created_at": hub_file.created_at,
        "base": base.source,
        "fingerprint": base.fingerprint,
        "quantization": base.quantization,
        "store": _store(hub, hub_file),
    }


def _store(hub: Path, hub_file: HubFile) -> str:
    """The store as the database names it: a folder together with its machine, because others cannot read it."""
    return hub_file.store_url if hub_file.is_shared else f"file:{socket.gethostname()}:{hub.absolute()}"
