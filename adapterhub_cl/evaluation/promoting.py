"""The effect of a version on the tasks of its hub, and whether it may serve them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from adapterhub_cl.adapters.head_files import read_layout
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import GateRefused, StorageError, UsageError
from adapterhub_cl.evaluation.base_effect import BaseEffect
from adapterhub_cl.evaluation.gate import REFUSED, Decision, Effect, decide, general_of, limit_of
from adapterhub_cl.evaluation.general_options import GeneralOptions
from adapterhub_cl.evaluation.general_text import GeneralText, general_text
from adapterhub_cl.evaluation.probes import can_answer, effect, outdated_of, probe_of, recorded_score, without
from adapterhub_cl.registry import changes
from adapterhub_cl.types import AdapterRecord


def effects_of(
    hub: Hub,
    record: AdapterRecord,
    tasks: list[str],
) -> list[Effect]:
    """The score of each task with the version that serves it, and with this one; measured scores are recorded.

    Skips tasks that nothing serves, that have no data left to measure, or for which an encoder's version has no head.
    """
    serving = hub.registry.serving()
    would = set(record.tasks)
    recorded = {row["task"]: Effect.from_json(row) for row in (record.manifest.get("gate") or {}).get("effects", ())}
    found = []
    for task in tasks:
        if serving.get(task) == record.ref and task in recorded:  # compare with what served before it
            found.append(recorded[task])
            continue
        probe = probe_of(hub.registry, task)
        probe = None if probe is None else without(probe, outdated_of(record, task))
        if probe is None or task not in serving or serving[task] == record.ref:
            continue
        if not can_answer(hub.registry.base, record, probe.task):
            continue
        old = hub.registry.get(serving[task])
        before, after = (recorded_score(hub, one, probe) for one in (old, record))
        found.append(effect(probe, before, after, old.ref, served=task in would))
    return found


def forgetting_of(hub: Hub, ref: str) -> tuple[AdapterRecord, list[Effect]]:
    """A version's effect on every other task of the hub; see `AdapterHub.forgetting`."""
    record = hub.registry.get(ref)
    others = [task.name for task in hub.registry.tasks() if task.name != record.task]
    recorded = {row["task"] for row in (record.manifest.get("gate") or {}).get("effects", ())}
    own = [record.task] if record.task in recorded else []
    return record, effects_of(hub, record, [*own, *others])


@changes.operation()
def promote(
    hub: Hub,
    ref: str,
    limit: float | None,
    general: GeneralOptions = GeneralOptions(),
) -> tuple[AdapterRecord, Decision]:
    """Let a version serve its tasks, through the gate; see `AdapterHub.promote`."""
    bound = limit_of(hub.registry, limit)
    watched = general_text(hub.registry, general)
    record = hub.registry.get(ref)
    if not record.tasks:
        raise UsageError(f"{record.ref} has no task to serve", "give it one: cl-adapter import … --task NAME")
    hub.registry.check_files(record)
    lost = _base_effect(hub, record, watched, bool(general.general))
    decision = decide(effects_of(hub, record, record.tasks), bound, lost)
    if not decision.passed:
        with suppress(StorageError):  # a read-only hub must not hide the gate's result
            hub.registry.add_event(REFUSED, record.ref, decision.to_log())
        raise GateRefused(
            decision.message(record.ref),
            f"nothing was changed; to promote it anyway: cl-adapter promote {record.ref} {_anyway(decision)}",
            record=record,
            gate=decision.to_json(),
        )
    for text in decision.within_chance:
        hub.reporter.note(text)
    for name in record.tasks:
        known, task = read_layout(record.path).get(name), hub.registry.task(name)
        missing = [label for label in task.labels if known is not None and label not in known]
        if missing:
            hub.reporter.note(
                f"note: {record.ref} does not know the labels that {name} has gained: {', '.join(missing)}"
            )
    if record.status == "rejected":
        hub.reporter.note(f"note: the gate refused {record.ref} when it was made; it is now active")
    return hub.registry.promote(record.ref), decision


def _base_effect(hub: Hub, record: AdapterRecord, text: GeneralText | None, chosen: bool) -> BaseEffect | None:
    """The effect on general text, as the version's own gate measured it.

    It is measured here if another text was asked for (`chosen`), or if there is a limit and no earlier measurement.
    """
    known = general_of(record.manifest.get("gate") or {})
    if text is None:
        return known
    if not chosen and (known is not None or text.limit is None):
        return None if known is None else replace(known, limit=text.limit)
    return text.of(hub, record.path)


def _anyway(decision: Decision) -> str:
    flags = ["--max-forgetting 1"] * bool(decision.blamed) + ["--max-base-forgetting 10"] * decision.spoils_base
    return " ".join(flags)
