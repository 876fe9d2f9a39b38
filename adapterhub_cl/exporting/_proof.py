"""The proof of an export: it answers held-out rows, and its score is compared with that of the adapter in the hub.

The rows are the held-out data that the version was scored on where they still lie, otherwise its replay samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import ExportRefused
from adapterhub_cl.exporting import PROOF, ExportOrder
from adapterhub_cl.types import Example, Task

if TYPE_CHECKING:
    from adapterhub_cl.bases.loading import LoadedBase
    from adapterhub_cl.evaluation.compared import Answers, TaskProof
    from adapterhub_cl.evaluation.probes import Probe

PLAIN = 0.99  # the usual share of the score to keep
EIGHT_BIT = 0.97  # with weights in 8 bits


@dataclass(frozen=True)
class Reference:
    """The rows of one task, and what the hub says to them with the adapter and without."""

    probe: Probe
    adapter: Answers
    base: Answers

    @property
    def task(self) -> Task:
        return self.probe.task

    @property
    def examples(self) -> Sequence[Example]:
        return self.probe.examples


def references(order: ExportOrder, base: LoadedBase) -> list[Reference]:
    """The rows of every task of the version, answered in the hub; a task of which no rows are left is missing.

    Args:
        base: the loaded base of the hub.
    """
    from adapterhub_cl.adapters.as_served import as_served
    from adapterhub_cl.evaluation.compared import Answers
    from adapterhub_cl.evaluation.probes import asked_as, by_answers, can_answer, probe_of

    count = order.config.proof_rows
    probes = []
    for task in order.tasks:
        probe = probe_of(order.hub.registry, task.name) if can_answer(base.info, order.record, task) else None
        probe = probe and by_answers(probe)
        if probe is None:
            order.hub.reporter.note(f"note: no held-out row or replay sample of {task.name} is left to try it on")
            continue
        probe = asked_as(probe, replace(task, metric=probe.task.metric))
        probes.append(probe.few(count))
    if not probes:
        return []
    with as_served(base, order.record.path) as model:
        told = [answers_of(model, base, probe, order, f"asking {order.record.ref}") for probe in probes]
    found = []
    for probe, adapter in zip(probes, told, strict=True):
        # An encoder without an adapter has no labels of its own.
        alone = Answers((), 0.0) if base.is_encoder else answers_of(base.model, base, probe, order, "asking the base")
        found.append(Reference(probe, adapter, alone))
    return found


def answers_of(model: Any, base: LoadedBase, probe: Probe, order: ExportOrder, what: str) -> Answers:
    """What a model says to the rows.

    Args:
        model: a transformers model of the base's architecture, with its adapter on it or in its weights.
        what: the step's name for the user.
    """
    from adapterhub_cl import objectives
    from adapterhub_cl.evaluation.compared import Answers, scored
    from adapterhub_cl.evaluation.gate import as_share
    from adapterhub_cl.evaluation.scoring import answered, evaluate

    task, objective = probe.task, objectives.of(base.info)
    options: dict[str, Any] = {"max_length": base.context, "dtype": base.dtype}
    with order.hub.reporter.piece(f"{what} {task.name}", len(probe.examples)) as advance:
        options["progress"] = advance
        if task.kind == "text":
            one = evaluate(model, base.tokenizer, objective, task, probe.examples, data=probe.data, **options)[0]
            return Answers((), as_share(one.metric, one.value))
        gold, said, _ = answered(model, base.tokenizer, objective, task, probe.examples, **options)
    return scored(probe, gold, said)


def judge(
    order: ExportOrder,
    made: Path,
    found: Sequence[Reference],
    answer: Callable[[Reference], Answers],
    *,
    least: float,
    opened_by: str,
    card: Mapping[str, Any],
    more: dict[str, Any] | None = None,
) -> dict[str, TaskProof]:
    """Ask the export, tell its figures, and write them beside it.

    Args:
        made: the folder of the export, where `proof.json` is written.
        answer: what the export says to the rows of one task.
        least: the smallest share of the score to keep, unless the user named one.
        opened_by: what it was opened with.
        card: how the model card describes it: see `write_export_card`.
        more: further facts for `proof.json`.

    Raises:
        ExportRefused: it changes nothing, or loses too much of a task.
    """
    from adapterhub_cl.evaluation.compared import compare, lost_too_much
    from adapterhub_cl.exporting._export_card import write_export_card

    wanted = order.config.min_retention
    least = least if wanted is None else wanted
    proofs: dict[str, TaskProof] = {}
    silent = []
    for one in found:
        export = answer(one)
        proofs[one.task.name] = proof = compare(one.probe, one.base, one.adapter, export)
        order.hub.reporter.note(proof.told(one.task.name))
        if export.texts and export.texts == one.base.texts != one.adapter.texts:
            silent.append(one.task.name)
    if silent:
        raise ExportRefused(
            f"the export answers {', '.join(silent)} exactly as the base does without the adapter",
            "nothing was written; please report this with the base's name",
        )
    lost = {task: proof for task, proof in proofs.items() if lost_too_much(proof, least)}
    if lost:
        told = "; ".join(proof.drop(task) for task, proof in lost.items())
        raise ExportRefused(
            f"the export retains less than {least:g} of {told}",
            "nothing was written; --min-retention accepts less, --proof-rows measures on more rows",
        )
    about = {
        "adapter": order.record.ref,
        "opened_by": opened_by,
        "min_retention": least,
        "tasks": {task: asdict(proof) for task, proof in proofs.items()},
        **(more or {}),
    }
    (made / PROOF).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_export_card(order, made, proofs, opened_by, **card)
    return proofs
