"""From merged, distilled or pruned factors to a version: files, measurement, gate, publication."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from adapterhub_cl.adapters.cards import derived_card
from adapterhub_cl.adapters.head_files import StoredHead, read_layout
from adapterhub_cl.adapters.lora import stored_adapter
from adapterhub_cl.adapters.lora_config import facts_of
from adapterhub_cl.adapters.lora_files import LoraFile, write_lora
from adapterhub_cl.adapters.serving_check import check_served
from adapterhub_cl.bases.kinds import is_encoder
from adapterhub_cl.consolidation.parents import Parents, check_new_name, one_task
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import GateRefused
from adapterhub_cl.evaluation.general_options import GeneralOptions
from adapterhub_cl.evaluation.general_text import general_text
from adapterhub_cl.evaluation.measuring import Yardstick
from adapterhub_cl.evaluation.retention import Retained
from adapterhub_cl.merging.factors import Factors
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.samples import rows_seen
from adapterhub_cl.strategies import MEMORY, ROOM
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation

RECIPE = "recipe.json"
RELATION = {"merged": "merged_from", "distilled": "distilled_from", "pruned": "pruned_from"}
CARRIED = ("training", "replay", "strategy", "shared")  # what a pruned version keeps of its parent's manifest


@dataclass(frozen=True)
class Making:
    """A derived version before it is written.

    Attributes:
        name: of the adapter that it becomes a version of.
        kind: `merged`, `distilled` or `pruned`.
        recipe: what was asked for, plain JSON: enough to make it again (`verb`, `parents` and options).
        least: lowest retention of a task that passes; None lets everything pass.
        measure: whether retention is measured at all.
        report: what came out, plain JSON; stands beside the recipe in `recipe.json`.
        foreign: the parents are versions of another hub.
        instead: what to try where the gate refuses it.
        first: no version of the name may be there by now.
        general: the text on which the gate measures what the base forgets, and how much it may.
    """

    name: str
    kind: str
    parents: Parents
    recipe: Mapping[str, Any]
    least: float | None = None
    measure: bool = True
    report: dict[str, Any] = field(default_factory=dict)
    foreign: bool = False
    instead: str = "another --method or a higher --rank, distill"
    first: bool = False
    general: GeneralOptions = field(default_factory=GeneralOptions)


def record(
    hub: Hub,
    making: Making,
    write: Callable[[Path], None],
    yardstick: Yardstick | None = None,
) -> AdapterRecord:
    """Write the version's files, measure it, publish it; rejected where the gate says no.

    Args:
        write: writes adapter_config.json and adapter_model.safetensors into a folder.
        yardstick: what the parents score, where that was measured before.

    Raises:
        GateRefused: a task keeps less than it must; the version (`error.record`) is kept as rejected.
        StorageError: the disk refused; nothing was published.
    """
    parents, tasks = making.parents, making.parents.tasks()
    first = parents.records[0]
    if making.kind == "pruned":  # the same adapter, made smaller
        own, takes_over = first.task, list(first.manifest.get("takes_over") or ())
    else:
        own, takes_over = one_task(tasks)
    named = [str(r.path.resolve()) if making.foreign else r.ref for r in parents.records]
    edges = [(parent, RELATION[making.kind]) for parent in named]
    with hub.registry.new_draft(making.name) as draft, storage_errors(draft.path):
        write(draft.path)
        retained = Retained(making.least, ())
        scores: list[Evaluation] = []
        if making.measure:
            with stored_adapter(hub.base, draft.path) as model:
                check_served(model, hub.base, draft.path, f"the new version of {making.name}")
            yardstick = yardstick or Yardstick.of(hub, tasks)
            general = general_text(hub.registry, making.general)
            effects, scores = yardstick.measure(hub.base, draft.path)
            retained = Retained(making.least, tuple(effects), None if general is None else general.of(hub, draft.path))
        report = {**making.report, "retention": retained.shares_json()}
        recipe = {**making.recipe, "min_retention": making.least, "measured": making.measure}
        recipe |= {field.name: getattr(making.general, field.name) for field in fields(GeneralOptions)}
        text = json.dumps({"recipe": recipe, "report": report}, indent=1) + "\n"
        (draft.path / RECIPE).write_text(text, encoding="utf-8")
        manifest: dict[str, Any] = {
            "kind": making.kind,
            "status": "active" if retained.passed else "rejected",
            "task": own,
            **facts_of(draft.path, hub.registry.base),
            "takes_over": takes_over,
            "recipe": recipe,
            "gate": retained.to_json(),
            "retention": retained.shares_json(),
            **{key: value for key, value in report.items() if key in ("truncation_error", "storage")},
        }
        if making.kind == "pruned":
            manifest |= {key: first.manifest[key] for key in CARRIED if key in first.manifest}
            _carry(first, draft.path, hub.reporter)
        else:
            (draft.path / "replay.jsonl").touch()
        card = derived_card(
            making.name,
            hub.registry.base,
            making.kind,
            list(tasks),
            recipe,
            report,
            edges,
            scores,
            read_layout(draft.path),
        )
        (draft.path / "README.md").write_text(card, encoding="utf-8")
        with hub.registry.exclusively():
            if making.first:  # another process may have been faster
                check_new_name(hub.registry, making.name, new_version=False)
            made = hub.registry.publish(
                draft,
                manifest,
                edges=edges,
                evaluations=scores,
                task=hub.registry.task(own) if own else None,
                serve=False,  # `promote` does that, through the gate on forgetting
                verb=str(making.recipe["verb"]),
                repeats=making.first or making.kind == "pruned",  # else a new version was asked for
            )
    if not retained.passed:
        raise GateRefused(
            retained.message(made.ref),
            f"{made.ref} is kept as rejected; try {making.instead}, or {_looser(retained)}",
            record=made,
            gate=retained.to_json(),
        )
    return made


def _carry(parent: AdapterRecord, folder: Path, reporter: Reporter) -> None:
    """Give a pruned version what its parent keeps beside its weights: its samples, which rows it saw, and what its
    strategies remember of earlier tasks, unless that belongs to the weights that are gone."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for name in ("replay.jsonl", rows_seen.FILE_NAME):
        if (parent.path / name).is_file():
            shutil.copyfile(parent.path / name, folder / name)
    if not (parent.path / MEMORY).is_file():
        return
    with safe_open(parent.path / MEMORY, framework="pt") as file:
        owners = {key: key.partition(".")[0] for key in file.keys()}  # noqa: SIM118 (not a dict)
        lost = sorted(name for name in set(owners.values()) & set(ROOM.names()) if ROOM.get(name).of_weights)
        kept = {key: file.get_tensor(key) for key, name in owners.items() if name not in lost}
    if kept:
        save_file(kept, folder / MEMORY)
    if lost:
        reporter.note(
            f"note: what {' and '.join(lost)} remembered belongs to the weights of {parent.ref} and is left out: "
            f"a later --strategy {lost[0]} does not protect what {parent.name} learned"
        )


def _looser(retained: Retained) -> str:
    """The flags that would let a version pass."""
    flags = ["a lower --min-retention"] * bool(retained.refused)
    return " and ".join([*flags, *["a higher --max-base-forgetting"] * retained.spoils_base])


def writer(
    layers: Mapping[str, Factors], adapters: Sequence[LoraFile], base: BaseInfo, head: StoredHead | None
) -> Callable[[Path], None]:
    """A function that writes these layers, and an encoder's head, as an adapter; a layer of rank 0 is left out."""

    def write(folder: Path) -> None:
        kept = {name: (found.b, found.a) for name, found in layers.items() if found.rank}
        write_lora(folder, kept, adapters, base.source, head, None if is_encoder(base.architecture) else "CAUSAL_LM")

    return write
