"""Rows that the old version writes itself, with its own answers, where a task's data are gone.

They are written and chosen as the selection policy `generated` does it (LAMOL, Sun et al. 2020): sampled inputs, the
old version's answers, without duplicates, unsure answers and copies of real rows. To learn from them is to learn the
old version's answers as text, which works across tokenizers (sequence-level distillation, Kim & Rush 2016,
arXiv:1606.07947).
"""

from __future__ import annotations

from adapterhub_cl import objectives, replay
from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.context import Hub
from adapterhub_cl.evaluation.evidence import ModelEvidence
from adapterhub_cl.rebasing.task_sources import SAMPLES, TaskSource
from adapterhub_cl.samples.of_task import length_of
from adapterhub_cl.types import BaseInfo, Example

POLICY = "generated"


def wanted_of(base: BaseInfo, found: TaskSource, asked: int, budget: int | None) -> int:
    """How many rows are to be written for a task: none where its data are there, where the old base cannot write, for
    facts and raw text, and beyond the budget.

    Args:
        base: the old one.
    """
    if found.source != SAMPLES or found.facts or found.task.kind == "text" or not objectives.of(base).writes:
        return 0
    return asked if budget is None else max(0, min(asked, budget - len(found.rows)))


def pseudo_rows(old: Hub, found: TaskSource, count: int) -> list[Example]:
    """At most so many rows; the same ones at each call. None of them repeats a row that is learned or measured on."""
    if not count:
        return []
    base, known = old.base, [*found.rows, *found.held]
    old.registry.check_files(found.record)
    with as_served(base, found.record.path) as model:
        evidence = ModelEvidence(
            model, base, objectives.of(base.info), found.task, known, length_of(found.record), reporter=old.reporter
        )
        made = replay.Keep(POLICY, count).select(known, 0, evidence)
    old.reporter.note(f"{found.task.name}: {found.record.ref} wrote {len(made)} of {count} further rows")
    return made
