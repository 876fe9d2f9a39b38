"""The model card of a version: what it is, its training data, its scores, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub_cl.adapters.card_headers import card_header
from adapterhub_cl.bases import TINY
from adapterhub_cl.bases.kinds import auto_class, is_encoder
from adapterhub_cl.bases.sources import public_name
from adapterhub_cl.types import BaseInfo, Evaluation, HeadRows, Task


def card(
    name: str,
    base: BaseInfo,
    task: Task,
    evaluations: Sequence[Evaluation],
    training: Mapping[str, Any],
    parents: Sequence[tuple[str, str]] = (),
    head: HeadRows | None = None,
) -> str:
    """A README in the format of model hubs.

    Args:
        training: the content of `training.json`; empty for an imported adapter.
        parents: (parent, relation) pairs.
        head: for an encoder's adapter: task → label → row.
    """
    lines = [
        *_header(name, base, evaluations),
        f"A LoRA adapter for the {task.kind} task `{task.name}` on {_about(base)}.",
        "",
    ]
    if task.labels:
        lines += [f"Labels: {', '.join(task.labels)}.", ""]
    if parents:
        lines += [*(f"- {relation.replace('_', ' ')} `{public_name(parent)}`" for parent, relation in parents), ""]
    if evaluations:
        lines += ["| metric | value | examples | data |", "|---|---|---|---|"]
        lines += [f"| {e.metric} | {e.value:.4f} | {e.n} | `{public_name(e.data)}` |" for e in evaluations]
        lines.append("")
    if training:
        data = training["data"]
        lines += [
            f"Trained on {data['examples']} examples of `{public_name(data['source'])}` with the strategy "
            f"`{training['strategy']}`, {training['steps']} steps; best epoch {training['best_epoch']} of "
            f"{training['settings']['epochs']}. All settings are in `training.json`.",
            "",
        ]
    lines += _footer(base, head)
    return "\n".join(lines)


def derived_card(
    name: str,
    base: BaseInfo,
    kind: str,
    tasks: Sequence[str],
    recipe: Mapping[str, Any],
    report: Mapping[str, Any],
    parents: Sequence[tuple[str, str]],
    evaluations: Sequence[Evaluation],
    head: HeadRows | None = None,
) -> str:
    """The card of a merged, distilled or pruned version.

    Args:
        tasks: the tasks that it answers.
        recipe: how it was made; `report` has the results.
    """
    served = ", ".join(f"`{task}`" for task in tasks) or "no task"
    lines = [
        *_header(name, base, evaluations),
        f"A LoRA adapter for {served} on {_about(base)}, {kind} from other versions"
        + (f" by `{recipe['method']}`" if recipe.get("method") else "")
        + ".",
        "",
    ]
    weights = recipe.get("weights") or {}
    lines += [
        f"- {relation.replace('_', ' ')} `{public_name(parent)}`"
        + (f" × {weights[parent]:.4g}" if parent in weights else "")
        for parent, relation in parents
    ]
    lines.append("")
    if "truncation_error" in report:
        lines += [f"Truncation error ‖ΔW − ΔW_r‖ ÷ ‖ΔW‖: {report['truncation_error']:.4g}.", ""]
    if evaluations:
        kept = report.get("retention") or {}
        lines += ["| task | metric | value | retention | examples | data |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {e.task} | {e.metric} | {e.value:.4f} | {kept.get(e.task, 1.0):.3f} | {e.n} | `{public_name(e.data)}` |"
            for e in evaluations
        ]
        lines.append("")
    packed = (report.get("storage") or {}).get("format") in ("int8", "int4")
    if packed:
        lines += ["The weights are packed; `cl-adapter export` writes the format that PEFT opens:", ""]
    return "\n".join([*lines, "How it was made is recorded in `recipe.json`.", "", *_footer(base, head)])


def _header(name: str, base: BaseInfo, evaluations: Sequence[Evaluation]) -> list[str]:
    return [*card_header(name, base, evaluations), f"# {name}", ""]


def _quoted(base: BaseInfo) -> str:
    return json.dumps(base.source, ensure_ascii=False)


def _about(base: BaseInfo) -> str:
    size = f"{base.parameters / 1e6:,.1f} million parameters"
    return f"`{base.source}` ({base.architecture}, {size}, {base.quantization})"


def _footer(base: BaseInfo, head: HeadRows | None) -> list[str]:
    """How to load it, and what it is for."""
    embedded, source, kind = base.source == TINY, _quoted(base), auto_class(base.architecture)
    if is_encoder(base.architecture):
        return [*_encoder_code(source, head or {}), f"Base fingerprint: `{base.fingerprint}`.", ""]
    return [
        "```python",
        "from peft import PeftModel",
        f"from transformers import {kind}",
        *(["", "from adapterhub_cl.bases import resolve  # the embedded base is a folder of this package"] * embedded),
        "",
        f"base = {kind}.from_pretrained({f'resolve({source})' if embedded else source})",
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
        "",
        f"Base fingerprint: `{base.fingerprint}`.",
        "",
    ]


def _encoder_code(source: str, head: HeadRows) -> list[str]:
    """The code to load an encoder's adapter, with the names of its head's rows."""
    several = len(head) > 1
    rows = {row: f"{task}: {label}" if several else label for task, own in head.items() for label, row in own.items()}
    kind = "AutoModelForSequenceClassification" if rows else "AutoModelForMaskedLM"
    labels = json.dumps([rows[row] for row in sorted(rows)], ensure_ascii=False)
    load = [f"base = {kind}.from_pretrained({source})"]
    if rows:
        load = [
            f"labels = {labels}",
            f"base = {kind}.from_pretrained({source}, num_labels={len(rows)}, id2label=dict(enumerate(labels)))",
        ]
    return [
        "```python",
        "from peft import PeftModel",
        f"from transformers import {kind}",
        "",
        *load,
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
        "",
    ]
