"""Files that keep, outside the index, what the manifests cannot: so that a rebuilt index loses nothing that matters.

`aliases.json` is the movable state (aliases and their history, serving table, statuses, tasks), rewritten after
each commit that changes it. `evaluations.jsonl` has the scores that were recorded after publication, one a line.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from adapterhub_cl.errors import StorageError
from adapterhub_cl.registry import files, queries, rows, schema
from adapterhub_cl.registry.index import Query
from adapterhub_cl.registry.names import parse_ref
from adapterhub_cl.types import Evaluation, Task

STATE, SCORES = "aliases.json", "evaluations.jsonl"
_TASKS = "SELECT name, spec FROM tasks ORDER BY name"
_LOG = logging.getLogger("adapterhub_cl")


def state(query: Query) -> dict[str, Any]:
    """The movable state of the index, as it is written to `aliases.json`."""
    history = query("SELECT name, alias, version, moved_at, reason FROM alias_history ORDER BY id")
    statuses = query("SELECT name, version, status FROM versions WHERE status <> 'active' ORDER BY name, version")
    return {
        "format": 1,
        "aliases": queries.aliases(query),
        "serving": queries.serving(query),
        "statuses": {f"{name}@v{version}": status for name, version, status in statuses},
        "tasks": {name: queries.parsed(spec, f"the task {name}") for name, spec in query(_TASKS)},
        "known": dict(query("SELECT name, MAX(version) FROM versions GROUP BY name ORDER BY name")),
        "history": [list(row) for row in history],
    }


def text(query: Query) -> str:
    """The content that `aliases.json` should have now, an entry a line: `indent` would write it in pure Python."""
    return "{\n" + ",\n".join(f"{_encode(key)}: {_lines(value)}" for key, value in state(query).items()) + "\n}\n"


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _lines(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "{\n " + ",\n ".join(f"{_encode(key)}: {_encode(entry)}" for key, entry in value.items()) + "\n}"
    if isinstance(value, list) and value:
        return "[\n " + ",\n ".join(map(_encode, value)) + "\n]"
    return _encode(value)


def write(hub: Path, query: Query) -> None:
    """Rewrite `aliases.json`. The index is already committed, so a refusal of the disk is only logged."""
    try:
        files.atomic_write_text(hub / STATE, text(query))
    except StorageError as error:
        _LOG.warning("%s could not be written (%s); cl-adapter verify --repair writes it again", STATE, error.message)


def is_stale(hub: Path, query: Query) -> bool:
    """Whether `aliases.json` is not what the index says."""
    try:
        return bool(json.loads((hub / STATE).read_text(encoding="utf-8")) != json.loads(text(query)))
    except (OSError, ValueError):  # what is no UTF-8 and what is no JSON are ValueErrors
        return True


def read(hub: Path) -> dict[str, Any] | None:
    """What `aliases.json` says, or None where it is missing or broken."""
    try:
        found = json.loads((hub / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("known"), dict) else None


def append_scores(hub: Path, scores: list[queries.StoredEvaluation]) -> None:
    """Add lines to `evaluations.jsonl`; a refusal of the disk is only logged, as the index has them."""
    lines = "".join(json.dumps(score.to_json(), ensure_ascii=False) + "\n" for score in scores)
    try:
        with files.storage_errors(hub / SCORES), (hub / SCORES).open("a", encoding="utf-8") as file:
            file.write(lines)
    except StorageError as error:
        _LOG.warning("%s could not be written: %s", SCORES, error.message)


def read_scores(hub: Path) -> list[dict[str, Any]]:
    """The lines of `evaluations.jsonl`; a line that a crash cut short is left out."""
    found = []
    path = hub / SCORES
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"adapter", "task", "metric", "value", "created_at"} <= row.keys():
            found.append(row)
    return found


def forget_scores(hub: Path, *, ref: str = "", task: str = "") -> None:
    """Remove from `evaluations.jsonl` the scores of a version, or those on a task."""
    if (hub / SCORES).exists():
        kept = [row for row in read_scores(hub) if row["adapter"] != ref and row["task"] != task]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        files.atomic_write_text(hub / SCORES, lines)


def restore(connection: Connection, hub: Path) -> Mapping[str, int]:
    """Bring the movable state back into a fresh index that has the manifests' rows.

    Whatever names a version that is no longer there is left out; `latest` and the serving table then take the
    newest active version of the same adapter.

    Returns:
        The highest version of each adapter that the state knew of; newer ones still have to be moved to.
    """
    found = read(hub)
    if found is None:
        return {}
    v = schema.versions
    there: dict[tuple[str, int], str] = {
        (row[0], row[1]): row[2] for row in connection.execute(select(v.c.name, v.c.version, v.c.status))
    }
    known: dict[str, int] = found["known"]
    statuses = {(ref.name, ref.version or 0): s for r, s in found.get("statuses", {}).items() if (ref := parse_ref(r))}
    for (name, version), status in there.items():
        wanted = statuses.get((name, version), "active")
        if version <= known.get(name, 0) and wanted != status:
            if wanted == "deleted":
                rows.delete_version(connection, name, version, "rebuild")
            else:
                rows.set_status(connection, name, version, wanted)
    for (name, version), status in statuses.items():
        if status == "deleted" and (name, version) not in there:
            rows.insert_deleted(connection, name, version)
    live = {key for key in there if statuses.get(key) != "deleted"}
    for name, held in found.get("aliases", {}).items():
        values = [{"name": name, "alias": a, "version": n} for a, n in held.items() if (name, n) in live]
        if values:
            connection.execute(insert(schema.aliases), values)
        newest = rows.newest_active(connection, name)
        if newest is not None and rows.LATEST in held and (name, held[rows.LATEST]) not in live:
            rows.move_alias(connection, name, rows.LATEST, newest, "rebuild")
    columns = ("name", "alias", "version", "moved_at", "reason")
    history = [dict(zip(columns, row, strict=True)) for row in found.get("history", ())]
    if history:
        connection.execute(insert(schema.alias_history), history)
    for spec in found.get("tasks", {}).values():
        rows.put_task(connection, Task.from_json(spec))
    for task, text_ref in found.get("serving", {}).items():
        ref = parse_ref(text_ref)
        answers = ref.version if (ref.name, ref.version) in live else rows.newest_active(connection, ref.name)
        if answers is not None:
            rows.set_serving(connection, task, ref.name, answers)
    return known


def restore_scores(connection: Connection, hub: Path, forgotten: Mapping[str, str]) -> None:
    """Bring the scores that were recorded after publication back into a fresh index; none on a forgotten task."""
    v = schema.versions
    there = {
        f"{r[0]}@v{r[1]}": r for r in connection.execute(select(v.c.name, v.c.version).where(v.c.status != "deleted"))
    }
    for row in read_scores(hub):
        if row["adapter"] in there and row["created_at"] > forgotten.get(row["task"], ""):
            name, version = there[row["adapter"]]
            score = Evaluation(**{key: row[key] for key in Evaluation.__dataclass_fields__ if key in row})
            rows.add_evaluations(connection, name, version, [score], row["created_at"])
