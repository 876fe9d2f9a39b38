"""What has gathered for a task: the judged answers that wait, cleaned, and divided into rows to learn and rows that are
held back to measure the new version on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.evaluation.probes import probe_of
from adapterhub_cl.loop.incident import Incident
from adapterhub_cl.loop.surprise import Surprise, surprise
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.files import atomic_write_text
from adapterhub_cl.traffic.cleaning import Clean, cleaned, question_of
from adapterhub_cl.traffic.conversations import held_back
from adapterhub_cl.traffic.journal import Journal, Judged
from adapterhub_cl.types import Example

HELD_BACK, FEWEST = 0.2, 30  # share of the rows that are measured on, where there are so many rows


@dataclass(frozen=True)
class Gathered:
    """What waits for a lesson of one task.

    Attributes:
        known: whether the hub has the task; otherwise users have named it.
        judged: everything that was said and waits.
        surprise: whether it was more often wrong than expected; None where that cannot be told.
        incident: rows that users contradict far more often than the others; they are no longer in `clean`.
    """

    task: str
    known: bool
    judged: Sequence[Judged]
    clean: Clean
    surprise: Surprise | None
    incident: Incident | None = None

    def without(self, registry: Registry, found: Incident) -> Gathered:
        """What is left to learn. Rows of an incident that is over are taken by the lesson and not learned; if it may go
        on, its rows and those after it wait."""
        rows = list(self.clean.rows)
        apart = {question_of(row) for row in (rows[found.start : found.stop] if found.over else rows[found.start :])}
        times = [one.said.at for one in self.judged if question_of(one.kept.example) in apart]
        found = replace(found, since=min(times), until=max(times))
        others = [one for one in self.judged if question_of(one.kept.example) not in apart]
        return replace(
            self,
            judged=self.judged if found.over else others,
            clean=replace(self.clean, rows=[row for row in rows if question_of(row) not in apart]),
            surprise=surprise(registry, self.task, others) if self.known else None,
            incident=found,
        )

    def split(self) -> tuple[list[Example], list[Example]]:
        """Rows to learn, and rows to measure on (none of few rows)."""
        rows = list(self.clean.rows)
        if len(rows) < FEWEST:
            return rows, []
        apart = held_back([question_of(row) for row in rows], HELD_BACK)
        back = [row for row, held in zip(rows, apart, strict=True) if held]
        return [row for row, held in zip(rows, apart, strict=True) if not held], back

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "known": self.known,
            "judged": len(self.judged),
            "rows": len(self.clean.rows),
            "dropped": self.clean.dropped,
            "labelled": all(one.said.labelled for one in self.judged if one.right is not None),
            "surprise": self.surprise.to_json() if self.surprise else None,
            "incident": self.incident.to_json() if self.incident else None,
        }


def gather(registry: Registry, journal: Journal, task: str) -> Gathered:
    """What waits for a lesson of a task."""
    judged = journal.judged(task, waiting=True)
    known = task in {one.name for one in registry.tasks()}
    probe = probe_of(registry, task) if known else None
    # Without held-out data a task is measured on its replay samples, which are learned anyway.
    evaluation = probe.examples if probe is not None and probe.sha256 else ()
    found = surprise(registry, task, judged) if known else None
    return Gathered(task, known, judged, cleaned(judged, evaluation), found)


def write_rows(path: Path, rows: Sequence[Example], *, chat: bool) -> None:
    """Write rows as data that `add-task` and `update` read, all in one layout.

    Args:
        chat: as conversations; otherwise the input alone, which for a conversation is its last message.

    Raises:
        StorageError: the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_as_chat(row) if chat else _flat(row).to_json(), ensure_ascii=False) for row in rows]
    atomic_write_text(path, "\n".join(lines) + "\n")


def read_back(path: Path) -> list[Example]:
    """Rows that `write_rows` wrote; none where the file is not there."""
    return list(read_examples(str(path)).examples) if path.exists() else []


def _flat(row: Example) -> Example:
    return Example(row.input, row.answer, "" if row.turns else row.instruction)


def _as_chat(row: Example) -> dict[str, Any]:
    if row.turns:
        return replace(row, references=()).to_json()
    system = [{"role": "system", "content": row.instruction}] if row.instruction else []
    asked = [{"role": "user", "content": row.input}, {"role": "assistant", "content": row.answer or ""}]
    return {"messages": [*system, *asked]}
