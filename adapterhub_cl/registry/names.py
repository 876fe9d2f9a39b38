"""Names of adapters, tasks and aliases, and references to versions. A name is never a path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from adapterhub_cl.errors import UsageError
from adapterhub_cl.types import BASE

MAX_LENGTH = 100
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_LIKE_VERSION = re.compile(r"v[0-9]+")


@dataclass(frozen=True)
class Ref:
    """A parsed reference. At most one of `version` and `alias` is set; neither means the latest version."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}@v{self.version}"
        return self.name if self.alias is None else f"{self.name}@{self.alias}"


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/.*", re.DOTALL)  # Path("s3://bucket") keeps only one slash


def check_local(path: str | Path, what: str = "a folder") -> Path:
    """The local path, with `~` expanded.

    Args:
        what: the kind of thing that is wanted, for the hint.

    Raises:
        UsageError: it is a URL; as a path it would create a folder called `s3:`.
    """
    text = str(path)
    if found := _URL.fullmatch(text):
        shown = text if text.startswith(f"{found[1]}://") else text.replace(":/", "://", 1)
        raise UsageError(f"{shown[:200]!r} is a URL, but only local paths are supported", f"name {what} here")
    return Path(path).expanduser()


def refuse_inside(path: Path, hub: Path, hint: str) -> None:
    """Raise where something would be written into a hub that is not part of it.

    Raises:
        UsageError: the path, its links followed, is inside the hub's folder.
    """
    if path.resolve().is_relative_to(hub.resolve()):
        raise UsageError(f"{path} is inside the hub", hint)


def refuse_in_any(path: Path, mark: str, hint: str) -> None:
    """Raise where something would be written into some hub that is not part of it.

    Args:
        mark: the name of the file that makes a folder a hub.

    Raises:
        UsageError: the path, its links followed, is a hub or inside one.
    """
    place = path.resolve()
    for folder in (place, *place.parents):
        if (folder / mark).is_file():
            raise UsageError(f"{path} is inside the hub {folder}", hint)


def is_outside(parent: str) -> bool:
    """Whether a parent in the lineage is a version of another hub, named by its path or URL."""
    return Path(parent).is_absolute() or _URL.fullmatch(parent) is not None


def is_name(text: str) -> bool:
    """Whether the text is a valid name: `[a-z0-9][a-z0-9._-]*`, no `..`, at most 100 characters."""
    return len(text) <= MAX_LENGTH and ".." not in text and _NAME.fullmatch(text) is not None


def clean_name(text: str) -> str:
    """The closest valid name, or an empty string if there is none."""
    kept = re.sub(r"[^a-z0-9._-]+", "-", text.lower())
    kept = re.sub(r"\.{2,}", ".", kept).lstrip("._-")
    return kept[:MAX_LENGTH].rstrip("._-")


def check_name(name: str, what: str = "adapter") -> str:
    """Return the name unchanged.

    Args:
        name: the text that the user gave.
        what: what is being named, e.g. `task`; used in the message.

    Raises:
        UsageError: it is not a valid name; the hint suggests one.
    """
    if is_name(name):
        return name
    shown = name if len(name) <= MAX_LENGTH else name[:40] + "…"
    better = clean_name(name)
    rule = f"a name has a-z, 0-9, '.', '_', '-', starts with a letter or digit, and is at most {MAX_LENGTH} long"
    raise UsageError(
        f"{shown!r} is not a valid name for {'an' if what[:1] in 'aeiou' else 'a'} {what}",
        f"use {better!r}; {rule}" if better else rule,
    )


def check_new(name: str) -> str:
    """Return the name of a new adapter unchanged.

    Raises:
        UsageError: it is not a valid name, or has a special meaning for `--adapter`.
    """
    if name == BASE:
        raise UsageError(
            f"{name!r} cannot be used as an adapter name: --adapter {name} means the base", "choose another name"
        )
    return check_name(name)


def check_alias(alias: str) -> str:
    """Return the alias unchanged.

    Raises:
        UsageError: it is not a valid name, or looks like a version (`v3`).
    """
    if _LIKE_VERSION.fullmatch(alias):
        raise UsageError(f"the alias {alias!r} looks like a version", "choose a word, e.g. production")
    return check_name(alias, "alias")


def parse_ref(text: str) -> Ref:
    """Parse `news`, `news@v2`, `news@production` or `news@latest`.

    Raises:
        UsageError: the text is not a reference.
    """
    name, at, rest = text.partition("@")
    check_name(name)
    if not at:
        return Ref(name)
    if match := _VERSION.fullmatch(rest):
        return Ref(name, version=int(match[1]))
    if not rest or _LIKE_VERSION.fullmatch(rest):
        raise UsageError(
            f"{text[:120]!r} is not a version reference", f"write {name}@v1, {name}@latest or {name}@production"
        )
    return Ref(name, alias=check_alias(rest))
