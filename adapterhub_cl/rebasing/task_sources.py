"""From what a task of the old hub would be learned again, and on which rows it is measured."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from adapterhub_cl import objectives
from adapterhub_cl.data.columns import Examples
from adapterhub_cl.data.tasks import find_leaks
from adapterhub_cl.errors import AdapterHubError, DataError, UsageError
from adapterhub_cl.evaluation.probes import outdated_of, probe_of, without
from adapterhub_cl.learning.material import data_of, learned_by
from adapterhub_cl.rebasing.rebase_options import FEWEST
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.of_task import samples_of
from adapterhub_cl.types import REWARD, AdapterRecord, BaseInfo, Example, Task

DATA, SAMPLES, PSEUDO = "data", "samples", "pseudo-samples"
ANSWERS = "answers"
HELD_SHARE = 0.25  # of the rows, where there is no held-out file; the rest is learned


@dataclass(frozen=True)
class TaskSource:
    """What there is of one task.

    Attributes:
        record: the version that answers for it in the old hub.
        source: `data`, `samples`, `pseudo-samples`, or empty where it cannot be learned again; `reason` says why, or
            why it is not the data.
        rows: what it would be learned from.
        held: what both versions are scored on.
        measured_on: the held-out file, as recorded scores name it; empty if `held` are rows that were held back.
        held_file: that file, if all of it is used; `held_sha256` as recorded scores have it.
        same_file: the original data file, where it is learned as it is, with its columns.
        first: the version whose training settings are taken over.
        notes: what else the user should know.
        nothing_kept: whether there are neither data nor samples, and the old version might write rows.
    """

    task: Task
    record: AdapterRecord
    source: str = ""
    reason: str = ""
    rows: Sequence[Example] = ()
    held: Sequence[Example] = ()
    measured_on: str = ""
    held_file: str = ""
    held_sha256: str = ""
    same_file: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    facts: bool = False
    first: AdapterRecord | None = None
    notes: tuple[str, ...] = ()
    nothing_kept: bool = False


def source_of_task(
    registry: Registry, base: BaseInfo, name: str, budget: int | None = None, pseudo: int = 0
) -> TaskSource:
    """What a task would be learned from: its original data if they still lie unchanged where they were, otherwise its
    replay samples, otherwise rows that the old version writes; those are not there yet.

    Args:
        base: the new base.
        budget: the most rows to learn from; None: all.
        pseudo: how many rows old versions may write; 0: none.
    """
    found = _whole_source(registry, base, name)
    if found.nothing_kept and objectives.of(registry.base).writes:
        if not pseudo:
            return replace(found, reason=f"{found.reason}; --pseudo-samples 200 lets {found.record.ref} write some")
        return _with_held_file(registry, replace(found, source=PSEUDO))
    if budget is None or len(found.rows) <= budget or found.facts or found.task.kind == "text":
        return found
    note = f"{budget} of {len(found.rows)} rows are learned (--budget)"
    return replace(found, rows=drawn(found.task, found.rows, budget), same_file="", notes=(*found.notes, note))


def drawn(task: Task, rows: Sequence[Example], count: int) -> list[Example]:
    """So many rows, in their order: of a choice task as many of each label as there are; drawn with a fixed seed."""
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    turn: dict[str, int] = defaultdict(int)
    ranked = []
    for k in order:
        label = (rows[k].answer or "") if task.kind == "choice" else ""
        turn[label] += 1
        ranked.append((turn[label] if task.kind == "choice" else 0, k))
    chosen = sorted(ranked, key=lambda pair: pair[0])[:count]
    return [rows[k] for k in sorted(k for _, k in chosen)]


def _whole_source(registry: Registry, base: BaseInfo, name: str) -> TaskSource:
    task, record = registry.task(name), registry.get(registry.serving()[name])
    try:
        objectives.name_for(base, task.kind)
    except UsageError as error:
        return TaskSource(task, record, reason=error.message)
    own = record if record.task == name else _newest(registry, name)
    if own is None:
        return TaskSource(task, record, reason=f"{record.ref} answers for it, and no version of its own is left")
    notes = () if record.task == name else (f"{record.ref} answers for several tasks; it gets an adapter of its own",)
    chain = learned_by(registry, own)
    facts = any(row["metric"] == "efficacy" for one in chain for row in one.manifest.get("evaluations", ()))
    found = TaskSource(task, record, facts=facts, first=chain[-1], notes=notes)
    try:
        return _split(registry, _of_one_kind(_from_data(found, data_of(registry, own))))
    except DataError as error:
        if facts or task.kind == "text":
            what = "facts are" if facts else "raw text is"
            return _none(found, f"{what} learned again only from the data: {error.message}")
        reason = error.message
    try:
        samples = samples_of(registry, name, own)
        if samples is None:
            return replace(_none(found, f"{reason}, and it keeps no replay samples"), nothing_kept=True)
        kept = replace(found, source=SAMPLES, rows=list(samples.examples), reason=reason)
        return _split(registry, _of_one_kind(kept))
    except AdapterHubError as error:
        return _none(found, error.message)


def _newest(registry: Registry, name: str) -> AdapterRecord | None:
    own = [r for r in registry.adapters(all_versions=True) if r.task == name and r.status == "active" and r.training]
    return max(own, key=lambda record: record.created_at, default=None)


def _none(found: TaskSource, reason: str) -> TaskSource:
    return replace(found, source="", rows=(), held=(), reason=reason)


def _from_data(found: TaskSource, files: Sequence[Examples]) -> TaskSource:
    """The rows of all files. A question that a newer file answers is not learned from an older one as well.

    Raises:
        DataError: all of it is raw text, and the task is not.
    """
    text = found.task.kind == "text"
    usable = [one for one in files if (one.layout == "raw text") == text]
    if not usable:
        raise DataError(f"the data of {found.record.ref} are raw text, which the task itself is not", "")
    notes = found.notes
    if len(usable) < len(files):
        notes = (*notes, "the raw text that it was updated with is left out")
    rows: list[Example] = []
    for one in usable:
        old = set(find_leaks(rows, one))
        rows += [example for k, example in enumerate(one) if k not in old]
    single = usable[0] if len(files) == 1 else None
    known = (found.first.training.get("data") or {}) if found.first is not None else {}
    return replace(
        found,
        source=DATA,
        rows=rows,
        same_file=str(known["source"]) if single is not None else "",
        columns=dict(known.get("columns") or {}),
        notes=notes,
    )


def _of_one_kind(found: TaskSource) -> TaskSource:
    """Rows that one training can learn, where updates have mixed answers, pairs of preferences and judged answers."""
    rows = one_kind(found.task, found.rows)
    if rows == list(found.rows):
        return found
    preferred = found.task.metric == REWARD
    what = "only those of the kind that most are" if preferred else "preferences by the answers that were preferred"
    note = f"its rows are of several kinds, and one training learns {what}: {len(rows)} of {len(found.rows)} rows"
    return replace(found, rows=rows, same_file="", notes=(*found.notes, note))


def one_kind(task: Task, rows: Sequence[Example]) -> list[Example]:
    """Of rows of several kinds: for a task that is measured by preferences the most frequent kind of these; otherwise
    all as answers, without those that were rejected."""
    counts = Counter(_kind(row) for row in rows)
    if len(counts) < 2:
        return list(rows)
    if task.metric == REWARD:
        kind = max((kind for kind in counts if kind != ANSWERS), key=lambda kind: (counts[kind], kind))
        return [row for row in rows if _kind(row) == kind]
    return [replace(row, rejected="", desirable=None) for row in rows if row.desirable is not False]


def _kind(row: Example) -> str:
    return "pairs" if row.rejected else "judged" if row.desirable is not None else ANSWERS


def _split(registry: Registry, found: TaskSource) -> TaskSource:
    """With the rows that both versions are scored on: the held-out file if it is still there, otherwise rows that are
    held back: replay samples where there are any. Facts are not held back: one that is not taught cannot be known.

    Raises:
        DataError: too few rows are left to learn from.
    """
    kept = _with_held_file(registry, found)
    if kept.measured_on:
        pass
    elif found.facts:
        kept = replace(found, held=found.rows, notes=(*found.notes, "measured on the facts themselves"))
    else:
        samples = samples_of(registry, found.task.name, found.record)
        pool = one_kind(found.task, samples.examples) if samples is not None else list(found.rows)
        held = held_back(found.task, pool, int(HELD_SHARE * len(found.rows)))
        leaks = set(find_leaks(held, found.rows))
        rows = [example for k, example in enumerate(found.rows) if k not in leaks]
        kept = replace(found, rows=rows, held=held, same_file="")
        if not held:
            raise DataError(f"{len(found.rows)} rows are too few to hold any back", "")
    if len(kept.rows) < FEWEST and found.task.kind != "text":
        raise DataError(f"{len(kept.rows)} rows are too few to learn from", "")
    return kept


def _with_held_file(registry: Registry, found: TaskSource) -> TaskSource:
    """With the rows of the held-out file, if it is still there."""
    probe = probe_of(registry, found.task.name)
    if probe is not None and probe.sha256:
        probe = without(probe, outdated_of(found.record, found.task.name))
    if probe is None or not probe.sha256:
        return found
    kept = replace(found, held=list(probe.examples), measured_on=probe.data, held_sha256=probe.sha256)
    return kept if probe.left_out else replace(kept, held_file=probe.data)


def held_back(task: Task, pool: Sequence[Example], most: int) -> list[Example]:
    """Rows to score on: of each label the same share, and never all rows of one; drawn with a fixed seed."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in dict.fromkeys(pool):
        groups[(example.answer or "") if task.kind == "choice" else ""].append(example)
    draw = random.Random(0)
    count = sum(map(len, groups.values()))
    share = min(HELD_SHARE, most / count) if count else 0.0
    found: list[Example] = []
    for label in sorted(groups):
        rows = groups[label]
        draw.shuffle(rows)
        found += rows[: max(int(share * len(rows)), 1 if len(rows) > 2 and share else 0)]
    return found


def measured_on_its_own(found: TaskSource, count: int) -> str:
    """The note on a score that is taken on rows which the old version wrote."""
    return f"measured on {count} rows that {found.record.ref} wrote itself, so the score says how often both agree"
