"""The model card of a version: what it is, what it learned from, what it scored, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub_cl.bases import TINY
from adapterhub_cl.types import BaseInfo, Evaluation, Task


def card(
    name: str,
    base: BaseInfo,
    task: Task,
    evaluations: Sequence[Evaluation],
    training: Mapping[str, Any],
    parents: Sequence[tuple[str, str]] = (),
) -> str:
    """A README in the form that model hubs read.

    Args:
        training: what `training.json` holds; empty for an imported adapter.
        parents: (parent, relation) pairs.
    """
    source = json.dumps(base.source, ensure_ascii=False)  # quoted as YAML and as Python want it
    embedded = base.source == TINY
    lines = [
        "---",
        f"base_model: {source}",
        "library_name: peft",
        "tags: [lora, adapterhub-cl]",
        "---",
        "",
        f"# {name}",
        "",
        f"A LoRA adapter for the {task.kind} task `{task.name}` on `{base.source}` "
        f"({base.architecture}, {base.parameters / 1e6:,.1f} million parameters, {base.quantization}).",
        "",
    ]
    if task.labels:
        lines += [f"Labels: {', '.join(task.labels)}.", ""]
    if parents:
        lines += [*(f"- {relation.replace('_', ' ')} `{parent}`" for parent, relation in parents), ""]
    if evaluations:
        lines += ["| metric | value | examples | data |", "|---|---|---|---|"]
        lines += [f"| {e.metric} | {e.value:.4f} | {e.n} | `{e.data}` |" for e in evaluations]
        lines.append("")
    if training:
        data = training["data"]
        lines += [
            f"Trained on {data['examples']} examples of `{data['source']}` with the strategy `{training['strategy']}`, "
            f"{training['steps']} steps; best epoch {training['best_epoch']} of {training['settings']['epochs']}. "
            "All settings stand in `training.json`.",
            "",
        ]
    lines += [
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        *(["", "from adapterhub_cl.bases import resolve  # the embedded base is a folder of this package"] * embedded),
        "",
        f"base = AutoModelForCausalLM.from_pretrained({f'resolve({source})' if embedded else source})",
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
        "",
        f"Base fingerprint: `{base.fingerprint}`.",
        "",
    ]
    return "\n".join(lines)
