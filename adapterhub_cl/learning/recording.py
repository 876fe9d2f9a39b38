"""Turns a trained adapter into a version: replay samples, the strategy's memory, model card, manifest, publication."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save_file

from adapterhub_cl import objectives, strategies, training_file
from adapterhub_cl.adapters.cards import card
from adapterhub_cl.adapters.head_files import read_layout
from adapterhub_cl.adapters.lora import save_adapter
from adapterhub_cl.adapters.lora_config import facts_of
from adapterhub_cl.adapters.serving_check import check_served
from adapterhub_cl.context import Hub
from adapterhub_cl.data.preference_tokens import ordinary
from adapterhub_cl.data.tasks import find_leaks
from adapterhub_cl.evaluation.evidence import ModelEvidence
from adapterhub_cl.evaluation.gate import Decision
from adapterhub_cl.learning.chosen_settings import settings_of
from adapterhub_cl.learning.fact_lessons import own_rows
from adapterhub_cl.learning.material import Material
from adapterhub_cl.learning.order import TrainOrder
from adapterhub_cl.learning.request import SHAPE
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.samples import rows_seen
from adapterhub_cl.samples.kept import facts_learned
from adapterhub_cl.training.learn import Learned
from adapterhub_cl.training.runs import Run
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation, Example

# What the manifest has of training.json.
OF_TRAINING = ("run", "objective", "steps", "seconds", "best_epoch", "learning_rate", "data", "eval", "settings")


@dataclass(frozen=True)
class Trained:
    """A trained model on its way to a version.

    Attributes:
        scores: everything that was measured; `decision` is the gate's.
        training: the facts for `training.json`.
        kept: the replay samples; `memory` is what the strategy stores beside them.
        more: further keys of the manifest.
    """

    model: Any
    material: Material
    scores: Sequence[Evaluation]
    decision: Decision
    training: Mapping[str, Any]
    kept: Sequence[Example]
    memory: Mapping[str, Any]
    more: Mapping[str, Any]


def keep_samples(
    hub: Hub,
    order: TrainOrder,
    model: Any,
    objective: objectives.BaseObjective,
    material: Material,
    learned: Learned,
) -> tuple[list[Example], dict[str, Any]]:
    """The replay samples, and the tensors that the strategy stores. Copies of held-out examples are never kept,
    unless they are facts that are measured on themselves."""
    pool = list(dict.fromkeys([*material.data.examples, *material.review]))
    if material.held_out is not None and not own_rows(order.request, material):
        leaks = set(find_leaks(material.held_out, pool))
        pool = [example for k, example in enumerate(pool) if k not in leaks]
        if leaks and not pool:
            hub.reporter.note(
                "warning: no replay samples are kept, because every training row is an evaluation row as well; without "
                "samples the router cannot choose this task"
            )
    task = material.task.as_text() if material.raw else material.task
    evidence = ModelEvidence(model, hub.base, objective, task, pool, learned.facts["max_length"], reporter=hub.reporter)
    kept = order.keep.select(pool, order.settings.seed, evidence)
    tokens = [ordinary(row) for row in learned.encode.many(kept)]
    usable = [k for k, row in enumerate(tokens) if row.answer]
    memory = order.strategy.remember(learned.stage, [kept[k] for k in usable], [tokens[k] for k in usable])
    return kept, {name: value.detach().cpu().contiguous() for name, value in memory.items()}


def training_facts(
    base: BaseInfo, order: TrainOrder, run: Run, material: Material, facts: Mapping[str, Any], model: Any
) -> dict[str, Any]:
    """The facts of a training that `training.json` keeps."""
    request = order.request
    held_out = material.held_out
    objective = objectives.name_taught(base, material.data, "text" if material.raw else material.task.kind)
    return {
        "run": run.id,
        "strategy": request.strategy,
        "options": dict(request.options),
        "augment": request.augment,
        "given": dict(request.settings),
        "objective": objective,
        "replay": request.replay,
        "data": {
            "source": material.data.source,
            "sha256": material.data.sha256,
            "layout": material.data.layout,
            "columns": dict(request.columns),
            "unused": list(material.data.unused),
            "examples": len(material.data),
            "skipped": material.data.skipped,
        },
        "eval": {"source": held_out.source, "sha256": held_out.sha256, "examples": len(held_out)} if held_out else None,
        **{key: value for key, value in facts.items() if key != "examples"},
        "settings": {**facts.get("settings", order.settings.to_json()), **_inherited(order, material, model)},
        "trained_on": facts["examples"],
    }


def _inherited(order: TrainOrder, material: Material, model: Any) -> dict[str, Any]:
    """The settings that an adapter which continues from another one has from it, whatever the defaults are."""
    parent = None if material.beneath else material.parent
    if parent is None and not order.request.begin_from:
        return {}
    config, had = model.peft_config["default"], (parent.training.get("settings") if parent else None) or {}
    real = {"rank": config.r, "alpha": config.lora_alpha, "rslora": config.use_rslora, "dora": config.use_dora}
    return {**{name: had[name] for name in SHAPE if name in had}, **real}


def _facts_known(order: TrainOrder, material: Material) -> int:
    """How many facts the new version and those before it learned; 0 if they did not learn facts alone.

    The router compares it with the replay samples: only where these have nearly all facts does it keep other questions
    away (see `adapterhub_cl.deciding.scope`).
    """
    parent = None if material.beneath else material.parent
    if not (facts_learned(parent) if parent else order.request.facts):
        return 0
    here = len({*material.data.examples, *material.review}) + material.leaked.get(material.task.name, 0)
    kept = (parent.manifest.get("replay") or {}).get("samples") if parent else 0
    return here + (facts_learned(parent) - int(kept or 0) if parent else 0)


def record_version(hub: Hub, order: TrainOrder, trained: Trained) -> AdapterRecord:
    """Write all files of the version and publish it, as rejected if the gate refused it."""
    registry, base, request, strategy = hub.registry, hub.base, order.request, order.strategy
    model, material, training = trained.model, trained.material, trained.training
    parent, task = material.parent, material.task
    relation = "trained_on_top_of" if material.beneath else "updated_from"
    start = dict(strategy.start())
    edges = [*([(parent.ref, relation)] if parent else []), *((ref, "started_from") for ref in start.get("from", ()))]
    with registry.new_draft(request.name) as draft, storage_errors(draft.path):
        save_adapter(model, draft.path, base.info.source, [task.name, *material.takes_over])
        check_served(model, base, draft.path, f"the new version of {request.name}")
        with open(draft.path / "replay.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(sample.to_json(), ensure_ascii=False) + "\n" for sample in trained.kept)
        rows_seen.write(draft.path, [*material.data.examples, *material.review])
        if trained.memory:
            save_file(dict(trained.memory), draft.path / strategies.MEMORY)
        (draft.path / training_file.NAME).write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
        text = card(request.name, base.info, task, trained.scores, training, edges, read_layout(draft.path))
        (draft.path / "README.md").write_text(text, encoding="utf-8")
        manifest = {
            "kind": "updated" if request.verb == "update" else "trained",
            "status": "active" if trained.decision.passed else "rejected",
            **facts_of(draft.path, base.info),
            "own_rank": model.peft_config["default"].r,
            "strategy": strategy.name,
            "shared": strategy.shared,
            "takes_over": list(material.takes_over),
            **({"start": start} if start else {}),
            "learned_from": sorted({lesson.task.name for lesson in material.past}),
            "read_from": sorted({lesson.record.ref for lesson in material.past}),
            "gate": trained.decision.to_json(),
            "stream": dict(request.stream),
            **({"tuned": tuned} if (tuned := settings_of(registry, request.name)) else {}),
            **trained.more,
            "replay": {
                "policy": order.keep.policy,
                "size": order.keep.size,
                "samples": len(trained.kept),
                **({"facts": known} if (known := _facts_known(order, material)) else {}),
            },
            "training": {key: training[key] for key in OF_TRAINING},
        }
        return registry.publish(
            draft,
            manifest,
            edges=edges,
            evaluations=trained.scores,
            task=task,
            serve=request.serve,
            verb="rebase" if request.rebased_from else request.verb,
        )
