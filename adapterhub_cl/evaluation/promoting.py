"""The effect of a version on the tasks of its hub, and whether it may serve them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from adapterhub_cl.adapters.head_files import read_layout
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import GateRefused, StorageError, UsageError
from adapterhub_cl.evaluation.gate import REFUSED, Decision, Effect, decide, limit_of
from adapterhub_cl.evaluation.probes import can_answer, effect, outdated_of, probe_of, recorded_score, without
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry, changes
from adapterhub_cl.types import AdapterRecord


def effects_of(
    registry: Registry,
    load: Callable[[], LoadedBase],
    record: AdapterRecord,
    tasks: list[str],
    reporter: Reporter,
) -> list[Effect]:
    """The score of each task with the version that serves it, and with this one; measured scores are recorded.

    Skips tasks that nothing serves, that have no data left to measure, or for which an encoder's version has no head.
    """
    serving = registry.serving()
    would = set(record.tasks)
    recorded = {row["task"]: Effect.from_json(row) for row in (record.manifest.get("gate") or {}).get("effects", ())}
    found = []
    for task in tasks:
        if serving.get(task) == record.ref and task in recorded:  # compare with what served before it
            found.append(recorded[task])
            continue
        probe = probe_of(registry, task)
        probe = None if probe is None else without(probe, outdated_of(record, task))
        if probe is None or task not in serving or serving[task] == record.ref:
            continue
        if not can_answer(registry.base, record, probe.task):
            continue
        old = registry.get(serving[task])
        before, after = (recorded_score(registry, load(), one, probe, reporter) for one in (old, record))
        found.append(effect(probe, before, after, old.ref, served=task in would))
    return found


def forgetting_of(
    registry: Registry, load: Callable[[], LoadedBase], ref: str, reporter: Reporter
) -> tuple[AdapterRecord, list[Effect]]:
    """A version's effect on every other task of the hub; see `AdapterHub.forgetting`."""
    record = registry.get(ref)
    others = [task.name for task in registry.tasks() if task.name != record.task]
    recorded = {row["task"] for row in (record.manifest.get("gate") or {}).get("effects", ())}
    own = [record.task] if record.task in recorded else []
    return record, effects_of(registry, load, record, [*own, *others], reporter)


@changes.operation()
def promote(
    registry: Registry, load: Callable[[], LoadedBase], ref: str, limit: float | None, reporter: Reporter
) -> tuple[AdapterRecord, Decision]:
    """Let a version serve its tasks, through the gate; see `AdapterHub.promote`."""
    bound = limit_of(registry, limit)
    record = registry.get(ref)
    if not record.tasks:
        raise UsageError(f"{record.ref} has no task to serve", "give it one: cl-adapter import … --task NAME")
    registry.check_files(record)
    decision = decide(effects_of(registry, load, record, record.tasks, reporter), bound)
    if not decision.passed:
        with suppress(StorageError):  # a read-only hub must not hide the gate's result
            registry.add_event(REFUSED, record.ref, decision.to_log())
        raise GateRefused(
            decision.message(record.ref),
            f"nothing was changed; to promote it anyway: cl-adapter promote {record.ref} --max-forgetting 1",
            record=record,
            gate=decision.to_json(),
        )
    for text in decision.within_chance:
        reporter.note(text)
    for name in record.tasks:
        known, task = read_layout(record.path).get(name), registry.task(name)
        missing = [label for label in task.labels if known is not None and label not in known]
        if missing:
            reporter.note(f"note: {record.ref} does not know the labels that {name} has gained: {', '.join(missing)}")
    if record.status == "rejected":
        reporter.note(f"note: the gate refused {record.ref} when it was made; it is now active")
    return registry.promote(record.ref), decision
