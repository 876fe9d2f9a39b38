"""What old tasks are measured on: their held-out data if it still exists unchanged, otherwise their replay samples."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub_cl import objectives
from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.adapters.head_files import read_layout
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.context import Hub
from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.data.label_forms import for_task
from adapterhub_cl.data.reading import at_hand
from adapterhub_cl.data.tasks import mark_of
from adapterhub_cl.errors import DataError
from adapterhub_cl.evaluation import metrics
from adapterhub_cl.evaluation.gate import Effect, as_share
from adapterhub_cl.evaluation.intervals import paired_correlation
from adapterhub_cl.evaluation.preference_scores import scorable
from adapterhub_cl.evaluation.scoring import answered, evaluate
from adapterhub_cl.evaluation.stages import source_of
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.kept import kept_samples
from adapterhub_cl.samples.of_task import length_of
from adapterhub_cl.types import REWARD, AdapterRecord, BaseInfo, Evaluation, Example, Task


@dataclass(frozen=True)
class Probe:
    """Examples to measure one task on.

    Attributes:
        data: where they came from, recorded with each score.
        sha256: of the source; empty for replay samples.
        left_out: how many of the source's examples were removed: see `without`.
    """

    task: Task
    examples: Sequence[Example]
    data: str
    max_length: int
    sha256: str = ""
    left_out: int = 0

    def few(self, most: int) -> Probe:
        """At most so many of the examples, spread evenly over them: files are often sorted by label."""
        count = len(self.examples)
        chosen = [self.examples[k * count // most] for k in range(most)] if count > most else self.examples
        return replace(self, examples=chosen)


def without(probe: Probe, outdated: Collection[str]) -> Probe | None:
    """The probe without questions whose answer has changed; None if nothing is left that can be scored.

    Args:
        outdated: marks (see `mark_of`) of these questions with their old answers.
    """
    marks = [mark_of(e, probe.task.instruction) for e in probe.examples] if outdated else []
    gone = sorted(mark for mark in marks if mark in outdated)
    if not gone:
        return probe
    kept = [e for e, mark in zip(probe.examples, marks, strict=True) if mark not in outdated]
    # Another name and hash: a score on these rows must not be mistaken for one on the whole source.
    seal = hashlib.sha256("\n".join([probe.sha256, *gone]).encode()).hexdigest()
    data = f"{probe.data}, {len(gone)} outdated left out"
    if not kept or (probe.task.metric == REWARD and not scorable(kept)):
        return None
    return replace(probe, examples=kept, data=data, sha256=seal, left_out=len(gone))


def outdated_of(record: AdapterRecord | None, task: str) -> frozenset[str]:
    """Marks of the old answers of a task that this version, or one that it was updated from, learned are outdated."""
    own = record is not None and record.task == task
    return frozenset(record.manifest.get("outdated") or ()) if own and record is not None else frozenset()


def probe_of(registry: Registry, name: str) -> Probe | None:
    """What a task of the hub is measured on; None if nothing is left of it."""
    task = registry.task(name)
    own = [r for r in registry.adapters(all_versions=True, include_rejected=False) if r.task == name]
    own = sorted((r for r in own if r.status == "active"), key=lambda r: r.created_at, reverse=True)
    for record in own:
        training = record.training
        held = training.get("eval") or {}
        if held and at_hand(held["source"]):
            try:
                found = read_examples(
                    held["source"],
                    training["data"].get("columns") or None,
                    task.instruction,
                    layout=task.layout,
                )
            except DataError:
                continue
            told = (found.layout != "raw text" or task.kind == "text") and found.read.prefers == (task.metric == REWARD)
            if found.sha256 == held["sha256"] and told:
                return Probe(task, for_task(task, found).examples, held["source"], length_of(record), found.sha256)
    for record in own:
        samples = [s for s in kept_samples(record) if s.input or task.kind == "text"]
        samples = [sample for sample in samples if sample.prefers == (task.metric == REWARD)]
        if samples and scorable(samples):
            return Probe(task, samples, f"replay samples of {record.ref}", length_of(record))
    return None


def by_answers(probe: Probe) -> Probe | None:
    """The same rows for a comparison of answers: of preferences the chosen ones, with F1 as the score; None if none is
    left. What is served elsewhere is asked in text and tells no likelihood."""
    if probe.task.metric != REWARD:
        return probe
    wanted = [example for example in probe.examples if example.desirable is not False]
    return replace(probe, task=replace(probe.task, metric="token_f1"), examples=wanted) if wanted else None


def can_answer(base: BaseInfo, record: AdapterRecord, task: Task) -> bool:
    """Whether a version can answer a task: for an encoder, whether it has a head for it."""
    return objectives.of(base).writes or task.kind == "text" or task.name in read_layout(record.path)


def asked_as(probe: Probe, task: Task) -> Probe:
    """The same examples, prompted as another description of their task says."""
    old = probe.task.instruction
    rows = [replace(e, instruction=task.instruction) if e.instruction == old else e for e in probe.examples]
    return replace(probe, task=task, examples=rows)


def score(
    model: Any,
    base: LoadedBase,
    probe: Probe,
    reporter: Reporter | None = None,
    what: str = "",
    *,
    batch_size: int = 32,
) -> Evaluation:
    """The task's main score, for the model in its current state."""
    reporter = reporter or Reporter()
    with reporter.piece(what or f"measuring {probe.task.name}", len(probe.examples)) as advance:
        return evaluate(
            model,
            base.tokenizer,
            objectives.of(base.info),
            probe.task,
            probe.examples,
            data=probe.data,
            max_length=base.context,
            dtype=base.dtype,
            batch_size=batch_size,
            progress=advance,
        )[0]


def score_rows(
    model: Any, base: LoadedBase, probe: Probe, reporter: Reporter | None = None, what: str = ""
) -> list[float]:
    """The task's main score on each row, 0 to 1, for the model in its current state; not for raw text."""
    reporter = reporter or Reporter()
    task, rows = probe.task, probe.examples
    with reporter.piece(what or f"measuring {task.name}", len(rows)) as advance:
        gold, said, _ = answered(
            model,
            base.tokenizer,
            objectives.of(base.info),
            task,
            rows,
            max_length=base.context,
            dtype=base.dtype,
            progress=advance,
        )
    return metrics.row_scores(task, gold, said, [row.references for row in rows])


def score_version(
    hub: Hub,
    record: AdapterRecord,
    probe: Probe,
) -> Evaluation:
    """The score of a stored version: the recorded one if it was measured on these exact examples, else measured."""
    for stored in reversed(hub.registry.evaluations(record.ref, probe.task.name)):
        found = stored.evaluation
        same = (found.data, found.n, found.metric) == (probe.data, len(probe.examples), probe.task.metric)
        if same and source_of(record, found) == probe.sha256:
            return found
    hub.registry.check_files(record)
    with as_served(hub.base, record.path) as model:
        return score(model, hub.base, probe, hub.reporter, f"measuring {record.ref} on {probe.task.name}")


def recorded_score(
    hub: Hub,
    record: AdapterRecord,
    probe: Probe,
) -> Evaluation:
    """Like `score_version`, but a newly measured score is recorded."""
    found = score_version(hub, record, probe)
    if not any(s.evaluation == found for s in hub.registry.evaluations(record.ref, probe.task.name)):
        hub.registry.add_evaluations(record.ref, [with_source(found, probe.sha256)])
    return found


def with_source(evaluation: Evaluation, sha256: str) -> Evaluation:
    """The score with the hash of the data it was measured on (`Probe.sha256`), so that it can be reused later."""
    return replace(evaluation, details={**evaluation.details, "sha256": sha256})


def effect(probe: Probe, before: Evaluation, after: Evaluation, answered_by: str, *, served: bool = True) -> Effect:
    """The effect of a version on a task, from both scores on the same examples."""
    metric = after.metric
    rows = [metrics.stored_row_scores(one) for one in (before, after)]
    return Effect(
        probe.task.name,
        metric,
        as_share(metric, before.value),
        as_share(metric, after.value),
        after.n,
        probe.data,
        answered_by,
        served,
        paired_correlation(*rows) if len(rows[0]) == len(rows[1]) == after.n else 0.0,
    )
