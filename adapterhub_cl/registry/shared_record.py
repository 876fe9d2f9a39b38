"""A version of a hub with a shared store, as the index has it, whose files may not be on this machine yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterhub_cl.registry.shared_store import SharedStore
from adapterhub_cl.types import AdapterRecord


class SharedRecord(AdapterRecord):
    """A version whose directory is fetched from the store when its path is first used."""

    _store: SharedStore
    _text: str

    @classmethod
    def of(cls, store: SharedStore, text: str, **values: Any) -> SharedRecord:
        record = cls(path=store.folder / values["name"] / f"v{values['version']}", **values)
        object.__setattr__(record, "_store", store)
        object.__setattr__(record, "_text", text)
        return record

    def __getattribute__(self, name: str) -> Any:
        if name == "path":
            known = object.__getattribute__(self, "__dict__")
            if "_store" in known:
                store: SharedStore = known["_store"]
                return store.fetch(known["name"], known["version"], known["_text"])
        return object.__getattribute__(self, name)

    @property
    def place(self) -> Path:
        return Path(self.__dict__["path"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedRecord) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((self.ref, self._text))

    def __repr__(self) -> str:
        return f"SharedRecord({self.ref}, {self.status}, {self.place})"
