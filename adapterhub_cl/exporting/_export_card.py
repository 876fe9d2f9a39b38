"""The model card of an export that is not PEFT's: what it is, its proof, its lineage, and how to open it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub_cl.exporting import ExportOrder
from adapterhub_cl.types import Edge, Evaluation

if TYPE_CHECKING:
    from adapterhub_cl.evaluation.compared import TaskProof


def write_export_card(
    order: ExportOrder,
    made: Path,
    proofs: Mapping[str, TaskProof],
    opened_by: str,
    *,
    library: str,
    relation: str,
    lines: Sequence[str],
) -> None:
    """Write README.md.

    Args:
        proofs: task → its figures.
        opened_by: what answered the rows.
        library, relation: see `card_header`.
        lines: how it is opened.
    """
    from adapterhub_cl.adapters.card_headers import card_header
    from adapterhub_cl.bases.sources import public_name

    record, base = order.record, order.base
    scores = [Evaluation(task, one.metric, one.export, one.n, one.data) for task, one in proofs.items()]
    named = getattr(order.config, "base_name", "") or public_name(base.source)
    tags = ("adapterhub-cl", "lora") if relation == "adapter" else ("adapterhub-cl",)
    told = ", ".join(f"`{task.name}` ({task.kind})" for task in order.tasks) or "no task"
    text = [
        *card_header(
            record.ref, base, scores, library=library, relation=relation, base_name=order.config.base_name, tags=tags
        ),
        f"# {record.ref}",
        "",
        f"The adapter `{record.ref}` on `{named}`, for {told}. `task.json` says how each task is asked.",
        "",
    ]
    if proofs:
        text += [
            f"Answers to held-out rows, by {opened_by}:",
            "",
            "| task | metric | base | adapter | this export | retention | rows | data |",
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| {task} | {one.metric} | {one.base:.4f} | {one.adapter:.4f} | {one.export:.4f} | "
                f"{one.retention:.3f} | {one.n} | `{one.data}` |"
                for task, one in proofs.items()
            ),
            "",
        ]
    edges = ancestry(order.hub.registry.lineage(record.ref), record.ref)
    if edges:
        text += ["Lineage:", ""]
        text += [f"- `{edge.child}` {edge.relation.replace('_', ' ')} `{public_name(edge.parent)}`" for edge in edges]
        text.append("")
    text += [*lines, "", f"Base fingerprint: `{base.fingerprint}`.", ""]
    (made / "README.md").write_text("\n".join(text), encoding="utf-8")


def ancestry(edges: Sequence[Edge], ref: str) -> list[Edge]:
    """Those of some edges, nearest first, that lead from a version to its ancestors."""
    known, found = {ref}, []
    for edge in edges:
        if edge.child in known:
            known.add(edge.parent)
            found.append(edge)
    return found
