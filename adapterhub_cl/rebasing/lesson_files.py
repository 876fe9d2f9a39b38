"""What a task is learned from and measured on, written down in the new hub: a rebase that was stopped goes on with the
very same rows and the same old score."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from adapterhub_cl.rebasing.new_hub import FOLDER
from adapterhub_cl.rebasing.task_sources import PSEUDO, TaskSource, measured_on_its_own
from adapterhub_cl.registry import Registry, seals, storage_errors
from adapterhub_cl.registry.files import atomic_write_text, sha256_file
from adapterhub_cl.types import Example

FILE, ROWS, HELD = "lesson.json", "train.jsonl", "held-out.jsonl"
OLD = "old-probabilities.json"


@dataclass(frozen=True)
class WrittenLesson:
    """One task, ready to be learned.

    Attributes:
        ref: the old version.
        data, eval: files; `sha256` of those that were written here.
        old_score: what the new version is compared with, by `metric`: of the old version on `old_n` rows.
        old_measured: its score on `eval`.
        old_from: the held-out file that `old_score` was recorded on; empty if it was measured on `eval`.
        old_row_scores: the old version's score on each row of `eval`, as a score's details have them; empty where they
            are not known.
        soft: name of the file beside these with what the old version says of each label of `data`; empty where that is
            not learned.
        written: how many of the rows are pseudo-samples; `asked` is how many were asked for.
    """

    task: str
    ref: str
    source: str
    data: str
    eval: str
    rows: int
    held: int
    metric: str
    columns: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    old_score: float | None = None
    old_n: int = 0
    old_measured: float | None = None
    old_from: str = ""
    old_row_scores: str = ""
    soft: str = ""
    written: int = 0
    asked: int = 0


def read_lesson(registry: Registry, source: TaskSource, asked: int = 0, soft: bool = False) -> WrittenLesson | None:
    """What was written down of a task; None if there is nothing, it is damaged, or the old hub would give something
    else by now.

    Args:
        asked: pseudo-samples that are asked for.
        soft: whether soft targets are wanted.
    """
    folder = registry.path / FOLDER / source.task.name
    try:
        row = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if not isinstance(row, dict) or row.get(seals.KEY) != seals.of_json(row):
            return None
        found = WrittenLesson(**{key: row[key] for key in WrittenLesson.__dataclass_fields__ if key in row})
        if any(sha256_file(folder / name) != wanted for name, wanted in found.sha256.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # Where the old version wrote the rows that it is measured on too, the source does not know how many.
    held = found.held if source.source == PSEUDO and not source.held else len(source.held)
    now = (source.record.ref, source.source, len(source.rows), held, asked, soft)
    same = (found.ref, found.source, found.rows - found.written, found.held, found.asked, bool(found.soft)) == now
    if not same or found.old_score is None:
        return None
    written = {name: str((folder / name).resolve()) for name in found.sha256}  # the hub may have been renamed since
    return replace(found, data=written.get(ROWS, found.data), eval=written.get(HELD, found.eval))


def write_rows(registry: Registry, found: TaskSource, pseudo: Sequence[Example] = (), asked: int = 0) -> WrittenLesson:
    """Write a task's rows into the new hub; files that can be used where they lie are not copied.

    Args:
        pseudo: pseudo-samples, of which `asked` were asked for.

    Raises:
        StorageError: the disk refused.
    """
    folder = registry.path / FOLDER / found.task.name
    text = found.task.kind == "text"
    with storage_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        own: dict[str, Sequence[Example]] = {}
        as_it_is = bool(found.same_file and found.held_file)
        if not as_it_is:
            own = {ROWS: [*found.rows, *pseudo], HELD: found.held}
        for name, rows in own.items():
            lines = [{"text": e.answer} if text else e.to_json() for e in rows]
            atomic_write_text(folder / name, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines))
        sha256 = {name: sha256_file(folder / name) for name in own}
    return WrittenLesson(
        found.task.name,
        found.record.ref,
        found.source,
        found.same_file if as_it_is else str((folder / ROWS).resolve()),
        found.held_file if as_it_is else str((folder / HELD).resolve()),
        len(found.rows) + len(pseudo),
        len(found.held),
        found.task.metric,
        found.columns if as_it_is else {},
        sha256,
        written=len(pseudo),
        asked=asked,
    )


def with_written(registry: Registry, found: TaskSource, lesson: WrittenLesson) -> TaskSource:
    """The source with the rows that it is measured on as they were written down, where it has none: the old version
    wrote them before the rebase was stopped."""
    if found.source != PSEUDO or found.held:
        return found
    folder = registry.path / FOLDER / found.task.name
    with storage_errors(folder), open(folder / HELD, encoding="utf-8") as lines:
        held = [Example.from_json(json.loads(line)) for line in lines]
    return replace(found, held=held, notes=(*found.notes, measured_on_its_own(found, len(held))))


def finish_lesson(registry: Registry, lesson: WrittenLesson) -> None:
    """Write down that the rows are complete and the old score is measured.

    Raises:
        StorageError: the disk refused.
    """
    folder = registry.path / FOLDER / lesson.task
    row = asdict(lesson)
    with storage_errors(folder):
        atomic_write_text(folder / FILE, json.dumps({**row, seals.KEY: seals.of_json(row)}, indent=1) + "\n")
