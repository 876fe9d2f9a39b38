"""Rows that the old version writes itself, with its own answers, where a task's data are gone.

They are written and chosen as the selection policy `generated` does it (LAMOL, Sun et al. 2020): sampled inputs, the
old version's answers, without duplicates, unsure answers and copies of real rows. To learn from them is to learn the
old version's answers as text, which works across tokenizers (sequence-level distillation, Kim & Rush 2016,
arXiv:1606.07947).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adapterhub_cl import objectives, replay
from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import AdapterError
from adapterhub_cl.evaluation.evidence import ModelEvidence
from adapterhub_cl.rebasing.rebase_options import FEWEST
from adapterhub_cl.rebasing.task_sources import HELD_SHARE, PSEUDO, SAMPLES, TaskSource, held_back, measured_on_its_own
from adapterhub_cl.replay.generated import OVERSAMPLE, best
from adapterhub_cl.samples.of_task import length_of
from adapterhub_cl.types import BaseInfo, Example

POLICY = "generated"


def wanted_of(base: BaseInfo, found: TaskSource, asked: int, budget: int | None) -> int:
    """How many rows are to be written for a task: none where its data are there, where the old base cannot write, for
    facts and raw text, and beyond the budget. Where nothing else is there, those to measure on are among them.

    Args:
        base: the old one.
    """
    gone = found.source in (SAMPLES, PSEUDO)
    if not gone or found.facts or found.task.kind == "text" or not objectives.of(base).writes:
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
        if known:
            made = replay.Keep(POLICY, count).select(known, 0, evidence)
        else:
            written = evidence.write(OVERSAMPLE * count, 0)
            made = best(written, (), count, found.task.kind == "choice") if written else []
    further = "rows" if found.source == PSEUDO else "further rows"
    old.reporter.note(f"{found.task.name}: {found.record.ref} wrote {len(made)} of {count} {further}")
    return made


def measured_on_written(found: TaskSource, rows: Sequence[Example]) -> tuple[TaskSource, list[Example]]:
    """The source with what both versions are scored on, and the rows that are left to learn: where there are no
    held-out rows, a quarter of those that the old version wrote. The score then says how often both agree.

    Raises:
        AdapterError: too few rows were written.
    """
    ref = found.record.ref
    if found.source == PSEUDO and not found.held:
        held = held_back(found.task, rows, int(HELD_SHARE * len(rows)))
        notes = (*found.notes, measured_on_its_own(found, len(held)))
        found, rows = replace(found, held=held, notes=notes), [row for row in rows if row not in held]
    if found.source == PSEUDO and (not found.held or len(rows) < FEWEST):
        raise AdapterError(
            f"{ref} wrote only {len(rows) + len(found.held)} rows of which it is sure",
            "ask for more with --pseudo-samples, or put the data back",
        )
    return found, list(rows)
