"""The training files that clients upload, in the hub's folder `server/files`.

A file is called by its random id. What the client called it is only shown, and is never part of a path.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from adapterhub_cl.erasure.places import UPLOADS
from adapterhub_cl.registry.files import (
    TEMPORARY,
    atomic_write_text,
    fsync_dir,
    is_leftover,
    storage_errors,
    temporary_name,
)
from adapterhub_cl.server.failing import Refused
from adapterhub_cl.server.folder_lock import locked

LOG = logging.getLogger("adapterhub_cl.server")
PURPOSE, ROWS, ABOUT = "fine-tune", ".jsonl", ".json"
_ID = re.compile(r"file-[0-9a-f]{24}")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Upload:
    """One uploaded file. `filename` is what the client called it; `created` is in seconds since 1970."""

    id: str
    filename: str
    bytes: int
    created: float

    def shown(self) -> dict[str, Any]:
        """The file as OpenAI's interface has it."""
        about = {"object": "file", "bytes": self.bytes, "created_at": int(self.created), "filename": self.filename}
        return {"id": self.id, **about, "purpose": PURPOSE, "status": "processed", "expires_at": None}


class Uploads:
    """The uploaded files of a hub.

    Args:
        hub: the hub's folder; nothing is made in it before the first upload.
        most: bytes of all files together.
    """

    def __init__(self, hub: Path, most: int) -> None:
        self.folder, self.most = hub.resolve() / UPLOADS, most

    def add(self, content: BinaryIO, filename: str) -> Upload:
        """Keep a file. A crash leaves the whole file or none.

        Raises:
            Refused: it is empty, or there is no room for it.
            StorageError: the disk refused.
        """
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
        if not size:
            raise Refused(400, "the file is empty", "invalid_request", "file")
        kept = "".join(c if c.isprintable() else "?" for c in filename)[:200] or "file"
        found = Upload(f"file-{secrets.token_hex(12)}", kept, size, time.time())
        with self.locked():
            self._sweep()
            there = sum(path.stat().st_size for path in self.folder.glob(f"*{ROWS}"))
            if there + size > self.most:
                raise Refused(
                    413,
                    f"the uploaded files would take {there + size} bytes, and this server keeps at most {self.most}; "
                    "delete files that are no longer needed",
                    "too_large",
                    "file",
                )
            self._write(found, content)
        return found

    def all(self) -> list[Upload]:
        """Every file, newest first."""
        found = [self._read(path.stem) for path in self.folder.glob(f"*{ROWS}")]
        return sorted((one for one in found if one is not None), key=lambda one: (one.created, one.id), reverse=True)

    def get(self, file_id: str, *, param: str | None = None) -> Upload:
        """The file with this id.

        Args:
            param: the field of a request that names it; None if the address does.

        Raises:
            Refused: there is none.
        """
        found = self._read(file_id) if _ID.fullmatch(file_id) else None
        if found is None:
            raise Refused(400 if param else 404, f"there is no file {file_id[:80]!r}", "file_not_found", param)
        return found

    def path(self, file_id: str) -> Path:
        """Where the rows of a known file are."""
        if not _ID.fullmatch(file_id):
            raise ValueError(file_id)
        return self.folder / f"{file_id}{ROWS}"

    def remove(self, file_id: str) -> None:
        """Delete a known file."""
        with storage_errors(self.folder):
            self.path(file_id).unlink(missing_ok=True)
            self.path(file_id).with_suffix(ABOUT).unlink(missing_ok=True)

    def locked(self) -> AbstractContextManager[None]:
        """Held while a file is written or deleted, and while a job that needs one is written down."""
        return locked(self.folder)

    def _write(self, found: Upload, content: BinaryIO) -> None:
        temporary = self.folder / temporary_name()
        with storage_errors(self.folder):
            try:
                with temporary.open("wb") as file:
                    while piece := content.read(_CHUNK):
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                atomic_write_text(self.path(found.id).with_suffix(ABOUT), json.dumps(asdict(found)))
                temporary.replace(self.path(found.id))
            except BaseException:
                temporary.unlink(missing_ok=True)
                self.path(found.id).with_suffix(ABOUT).unlink(missing_ok=True)
                raise
            fsync_dir(self.folder)

    def _read(self, file_id: str) -> Upload | None:
        rows = self.folder / f"{file_id}{ROWS}"
        try:
            about = json.loads(rows.with_suffix(ABOUT).read_text(encoding="utf-8"))
            return Upload(file_id, str(about["filename"]), rows.stat().st_size, float(about["created"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            LOG.warning(f"{rows.with_suffix(ABOUT)} cannot be read; the file is not listed")
            return None

    def _sweep(self) -> None:
        """Delete what uploads of dead processes have left."""
        for path in self.folder.glob(f"{TEMPORARY}*"):
            if is_leftover(path):
                path.unlink(missing_ok=True)
