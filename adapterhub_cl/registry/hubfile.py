"""`hub.toml`: which base a hub belongs to, and where its index and its adapters are."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import HubError, UsageError
from adapterhub_cl.registry.files import atomic_write_text
from adapterhub_cl.types import BaseInfo

FILE_NAME = "hub.toml"
FORMAT = 1
EMBEDDED = "tiny"  # the base that is shipped in this package
BASE_PATH = "CL_ADAPTER_BASE_PATH"  # environment variable: where a hub's base is, if not where hub.toml says
_KNOWN = {
    "": {"format", "created_at", "base", "index", "store", "defaults"},
    "base": set(BaseInfo.__dataclass_fields__),
    "index": {"url"},
    "store": {"url"},
}


@dataclass(frozen=True)
class HubFile:
    """The content of `hub.toml`.

    Attributes:
        created_at: UTC, ISO 8601.
        index_url: SQLAlchemy URL; a relative SQLite path is relative to the hub, a server's has no password.
        store_url: `file:` and a path, relative to the hub unless it is absolute; or a URL that several machines reach.
        defaults: options used when neither a flag nor a config file sets them.
    """

    base: BaseInfo
    created_at: str
    index_url: str = "sqlite:///index.db"
    store_url: str = "file:adapters"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def is_shared(self) -> bool:
        """Whether the versions are in a store that other machines reach too."""
        return "://" in self.store_url and not self.store_url.startswith("file:")

    def store_path(self, hub: Path) -> Path:
        """The directory that holds the adapters: all of them, or the copies of those that were used here.

        Raises:
            HubError: the store is not a directory on this machine.
        """
        if self.is_shared:
            return hub / "adapters"
        scheme, _, rest = self.store_url.partition(":")
        if scheme != "file" or not rest:
            raise HubError(
                f"the store {self.store_url!r} of {hub / FILE_NAME} is not a file: URL", 'use "file:adapters"'
            )
        return hub / rest.removeprefix("//")

    def base_at(self, hub: Path, elsewhere: str = "") -> BaseInfo:
        """The base with its current location; its fingerprint stays as recorded.

        Args:
            elsewhere: where it is, if not where `hub.toml` says.
        """
        base = self.base
        if base.source == EMBEDDED:
            return base
        if elsewhere:
            return replace(base, source=str(Path(elsewhere).expanduser().absolute()), revision=None)
        if base.source.startswith(("./", "../")):
            return replace(base, source=os.path.normpath(hub.resolve() / base.source))
        return base

    def beside(self, hub: Path) -> HubFile:
        """A copy with a relative path to a base that is beside the hub, so that both can be moved together."""
        source = Path(self.base.source)
        if not source.is_absolute() or not source.resolve().is_relative_to(hub.resolve().parent):
            return self
        way = Path(os.path.relpath(source.resolve(), hub.resolve())).as_posix()
        return replace(self, base=replace(self.base, source=way if way.startswith("..") else f"./{way}"))

    def with_default(self, key: str, value: Any) -> HubFile:
        """A copy with one entry of [defaults] set; None removes it."""
        return replace(self, defaults={k: v for k, v in {**self.defaults, key: value}.items() if v is not None})

    def write(self, hub: Path) -> None:
        """Write `<hub>/hub.toml` atomically.

        Raises:
            StorageError: the disk cannot be written; an old file is untouched.
        """
        import tomli_w

        base = {key: getattr(self.base, key) for key in BaseInfo.__dataclass_fields__}
        tables = {
            "format": self.format,
            "created_at": self.created_at,
            "base": {key: value for key, value in base.items() if value is not None},
            "index": {"url": self.index_url},
            "store": {"url": self.store_url},
            "defaults": {key: value for key, value in self.defaults.items() if value is not None},
        }
        atomic_write_text(hub / FILE_NAME, tomli_w.dumps(tables))

    @classmethod
    def read(cls, hub: Path) -> HubFile:
        """Read `<hub>/hub.toml`. Unknown keys are ignored, with a warning in the log.

        Raises:
            HubError: the file is missing or invalid, or a newer version wrote it.
        """
        path = hub / FILE_NAME
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise HubError(f"no hub at {hub}", f"make one: cl-adapter init --base tiny --hub {hub}") from None
        except tomllib.TOMLDecodeError as error:
            raise HubError(f"{path} is not valid TOML: {error}", "fix that line, or restore the file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise HubError(f"{path} cannot be read: {error}", "check its permissions, or restore it") from error
        number = raw.get("format", FORMAT)
        if not isinstance(number, int):
            raise HubError(f"{path}: format is {number!r}, not a number", "restore the file")
        if number > FORMAT:
            raise HubError(
                f"the hub at {hub} was made by a newer version (format {number}, this one knows {FORMAT})",
                "upgrade: pip install --upgrade adapterhub-cl",
            )
        _warn_unknown(path, raw)
        base = _table(path, raw, "base")
        if missing := [key for key in ("source", "fingerprint") if not isinstance(base.get(key), str)]:
            raise HubError(f"{path}: [base] has no {' and no '.join(missing)}", "restore the file")
        for key, value in base.items():
            kind = int if key == "parameters" else str
            if key in _KNOWN["base"] and (not isinstance(value, kind) or isinstance(value, bool)):
                raise HubError(f"{path}: {key} of [base] is {value!r}", "restore the file")
        return cls(
            base=BaseInfo(**{key: value for key, value in base.items() if key in _KNOWN["base"]}),
            created_at=str(raw.get("created_at", "")),
            index_url=str(_table(path, raw, "index").get("url", "sqlite:///index.db")),
            store_url=str(_table(path, raw, "store").get("url", "file:adapters")),
            defaults=_table(path, raw, "defaults"),
            format=number,
        )


def check_store_url(url: str) -> str:
    """The URL of a shared store as it is stored in `hub.toml`.

    Raises:
        UsageError: it is no URL that several machines can reach, or contains a password.
    """
    scheme, _, rest = url.rstrip("/").partition("://")
    if not scheme or not rest or scheme in ("file", "memory"):
        raise UsageError(
            f"{url!r} is not a store that several machines reach",
            "give s3://bucket/prefix, another URL of fsspec, or local:///folder for one that all machines mount",
        )
    if "@" in rest.partition("/")[0] and ":" in rest.partition("@")[0]:
        raise UsageError(
            "the store's URL contains a password, which would be stored in hub.toml",
            "leave it out, and put the credentials where fsspec looks for them, such as AWS_PROFILE",
        )
    return url.rstrip("/")


def _table(path: Path, raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = raw.get(name, {})
    if not isinstance(table, dict):
        raise HubError(f"{path}: {name} is not a table", f"write it as [{name}]")
    return table


def _warn_unknown(path: Path, raw: Mapping[str, Any]) -> None:
    unknown = [key for key in raw if key not in _KNOWN[""]]
    for table in ("base", "index", "store"):
        unknown += [f"{table}.{key}" for key in _table(path, raw, table) if key not in _KNOWN[table]]
    if unknown:
        import logging

        logging.getLogger("adapterhub_cl").warning("%s: unknown keys ignored: %s", path, ", ".join(unknown))
