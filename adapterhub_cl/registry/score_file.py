"""`evaluations.jsonl`: the scores that were recorded after publishing, one a line, for a rebuilt index."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from adapterhub_cl.registry import files, queries, schema, shapes, writes
from adapterhub_cl.registry.index import Query
from adapterhub_cl.registry.shapes import shown
from adapterhub_cl.registry.telling import Warnings, logged
from adapterhub_cl.types import Evaluation

FILE_NAME = "evaluations.jsonl"
NEXT = f"{FILE_NAME}.next"
_encode = json.JSONEncoder(ensure_ascii=False).encode


@contextmanager
def adding(hub: Path, scores: list[queries.StoredEvaluation]) -> Iterator[None]:
    """A block that commits scores to the index; their lines are appended to `evaluations.jsonl` after it.

    Raises:
        StorageError: the disk cannot be written; raised before the block runs.
    """
    lines = "".join(json.dumps(score.to_json(), ensure_ascii=False) + "\n" for score in scores).encode()
    following = hub / NEXT
    try:
        with files.storage_errors(following):
            files.write_synced(following, lines)
            files.fsync_dir(hub)
        yield
    except BaseException:
        with suppress(OSError):
            following.unlink(missing_ok=True)
        raise
    with logged(FILE_NAME):
        files.append_synced(hub / FILE_NAME, lines)
        following.unlink()


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What identifies a recorded score."""
    return (row["adapter"], row["task"], row["metric"], row["n"], float(row["value"]), row["created_at"])


def _late(query: Query) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The scores that were recorded after publishing, in the file's format."""
    made = {(name, number): at for name, number, at in query("SELECT name, version, created_at FROM versions")}
    late = [
        score.to_json()
        for score in queries.evaluations(query, None, None, None)
        if score.created_at != made.get(shapes.version_of(score.ref) or ("", 0))
    ]
    return {_key(row): row for row in late}


def lacks(hub: Path, query: Query) -> int:
    """How many recorded scores are missing from `evaluations.jsonl`."""
    late = _late(query)
    return len(late.keys() - {_key(row) for row in read(hub)}) if late else 0


def mend(hub: Path, query: Query) -> bool:
    """Make `evaluations.jsonl` match the scores in the index; returns whether that changed anything.

    Raises:
        StorageError: the disk cannot be written.
    """
    late = _late(query)
    there = {f"{name}@v{number}" for name, number in query("SELECT name, version FROM versions")}
    before = read(hub)
    kept = {_key(row): row for row in before if _key(row) in late or row["adapter"] not in there}
    after = kept | {key: row for key, row in late.items() if key not in kept}
    if len(before) == len(after) == len(kept) and _ends_whole(hub / FILE_NAME):
        return False
    files.atomic_write_text(hub / FILE_NAME, "".join(_encode(row) + "\n" for row in after.values()))
    return True


def _ends_whole(path: Path) -> bool:
    """Whether the last line is complete."""
    with suppress(OSError):
        data = path.read_bytes()
        return not data or data.endswith(b"\n")
    return True


def read(hub: Path, warn: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """The lines of `evaluations.jsonl`, without invalid ones (such as a line cut short by a crash).

    Args:
        warn: called for each invalid line.
    """
    found = []
    path = hub / FILE_NAME
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        warn(f"all ({(error.strerror or 'it cannot be read').lower()})")
        return []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = shapes.parse(line)
        except ValueError:
            warn(f"line {number} (it is not valid JSON)")
            continue
        if wrong := _wrong_line(row):
            warn(f"line {number} ({wrong})")
        else:
            found.append(row)
    return found


def _wrong_line(row: Any) -> str:
    if wrong := shapes.wrong_score(row):
        return wrong
    if shapes.version_of(row.get("adapter")) is None:
        return f"its adapter is {shown(row.get('adapter'))}"
    if not isinstance(row.get("created_at"), str):
        return f"its created_at is {shown(row.get('created_at'))}, not a time"
    details = shapes.wrong_details(row.get("details", {}))
    return f"its details.{details[0]} is invalid" if details else ""


@contextmanager
def forgetting(hub: Path, *, refs: Collection[str] = (), tasks: Collection[str] = ()) -> Iterator[None]:
    """A block that removes scores of versions, or on tasks, from the index. Their lines are removed after it.

    Raises:
        StorageError: the disk cannot be written, before the block or after it; in the second case opening the hub
            again removes the lines.
    """
    if not (hub / FILE_NAME).exists():
        yield
        return
    following = hub / NEXT
    try:
        with files.storage_errors(following):
            files.write_synced(following, b"")
            files.fsync_dir(hub)
        yield
    except BaseException:
        with suppress(OSError):
            following.unlink(missing_ok=True)
        raise
    kept = [row for row in read(hub) if row["adapter"] not in refs and row["task"] not in tasks]
    files.atomic_write_text(hub / FILE_NAME, "".join(_encode(row) + "\n" for row in kept))
    with files.storage_errors(following):
        following.unlink(missing_ok=True)


def restore(connection: Connection, hub: Path, forgotten: Mapping[str, str]) -> None:
    """Restore the scores recorded after publishing in a fresh index, without those on forgotten tasks. Invalid lines
    are skipped, with a warning."""
    v = schema.versions
    there = {
        f"{r[0]}@v{r[1]}": r for r in connection.execute(select(v.c.name, v.c.version).where(v.c.status != "deleted"))
    }
    warn = Warnings(FILE_NAME)
    for row in read(hub, warn):
        if row["adapter"] in there and row["created_at"] > forgotten.get(row["task"], ""):
            name, version = there[row["adapter"]]
            score = Evaluation(**{key: row[key] for key in Evaluation.__dataclass_fields__ if key in row})
            writes.add_evaluations(connection, name, version, [score], row["created_at"])
    warn.end()
