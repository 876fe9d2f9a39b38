"""API keys: who may read, ask or steer. A file holds their hashes only.

A key is 32 random bytes, so one SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.registry.files import atomic_write_text

ROLES = ("read", "ask", "steer")  # each may do what those before it may
PREFIX = "clk-"


@dataclass(frozen=True)
class ApiKey:
    """A key as the file has it: a name for the logs, a role, and the hash of the secret (hex)."""

    name: str
    role: str
    sha256: str

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


NOBODY = ApiKey("anyone", "steer", "")  # where no keys are given, whoever reaches the port


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file.

    Raises:
        DataError: it cannot be read, or has no keys.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["keys"]
        found = [ApiKey(str(row["name"]), str(row["role"]), str(row["sha256"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a file of keys"
        raise DataError(f"{path}: {reason}", f"make one: cl-adapter key NAME --file {path}") from error
    for key in found:
        if key.role not in ROLES or len(key.sha256) != 64:
            raise DataError(f"{path}: the key {key.name!r} has no usable role or hash", "make it again")
    if not found:
        raise DataError(f"{path} has no keys", f"make one: cl-adapter key NAME --file {path}")
    return found


def add_key(path: Path, name: str, role: str) -> str:
    """Add a key to a file, which is made readable for its owner only; the secret is returned and stored nowhere.

    Raises:
        UsageError: a name that is taken or empty, or an unknown role.
        DataError: the file is not a file of keys.
    """
    if role not in ROLES:
        raise UsageError(f"--role must be one of {', '.join(ROLES)}, not {role!r}", "--role ask")
    if not name.strip() or not name.isprintable():
        raise UsageError("a key needs a name, for the logs", "cl-adapter key alice --file keys.json")
    known = read_keys(path) if path.exists() else []
    if name in {key.name for key in known}:
        raise UsageError(f"{path} has a key named {name!r}", "choose another name, or remove that one from the file")
    secret = PREFIX + secrets.token_urlsafe(32)
    rows = [vars(key) for key in (*known, ApiKey(name, role, hashed(secret)))]
    atomic_write_text(path, json.dumps({"keys": rows}, indent=1) + "\n")
    path.chmod(0o600)
    return secret


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def found_by(keys: list[ApiKey], secret: str) -> ApiKey | None:
    """The key whose secret this is. Every hash is compared, so the time says nothing."""
    mine, found = hashed(secret), None
    for key in keys:
        if hmac.compare_digest(key.sha256, mine):
            found = key
    return found
