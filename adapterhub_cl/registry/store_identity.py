"""Whose a shared store is: `hub.json` in it, written by the hub that made it, and looked at before every write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from adapterhub_cl.errors import AdapterHubError, HubError, StorageError

if TYPE_CHECKING:
    from adapterhub_cl.registry.hubfile import HubFile
    from adapterhub_cl.registry.remote_store import RemoteStore

IDENTITY = "hub.json"
_REPAIR = "cl-adapter verify --repair"


def content(hub_file: HubFile) -> bytes:
    """What `hub.json` says in the store of this hub."""
    about = {"created_at": hub_file.created_at, "fingerprint": hub_file.base.fingerprint}
    return (json.dumps(about) + "\n").encode()


def strangeness(remote: RemoteStore, hub_file: HubFile) -> AdapterHubError | None:
    """Why a hub may not write to what is at its store's address; None if it is its store.

    A folder whose disk is not mounted is missing or empty. What is written there makes a second store, which is hidden
    once the disk is back, and which no other machine sees.
    """
    raw, mine = remote.read(IDENTITY), content(hub_file)
    if raw is None:
        hint = f"mount it, or correct [store] url in hub.toml; if only {IDENTITY} was lost: {_REPAIR}"
        return StorageError(f"the store {remote.url} is not there: is it mounted? It has no {IDENTITY}", hint)
    if raw == mine:
        return None
    try:
        told, wanted = json.loads(raw), json.loads(mine)
        if told == wanted:
            return None
        if all(isinstance(told[key], str) for key in wanted):
            hint = f"correct [store] url in hub.toml, or restore {IDENTITY} in the store from a backup"
            return HubError(f"the store {remote.url} belongs to another hub, as its {IDENTITY} says", hint)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return StorageError(f"{IDENTITY} in the store {remote.url} is damaged", _REPAIR)
