"""The header of a model card, from which Hugging Face shows the base, the scores and what opens the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from adapterhub_cl.bases.sources import public_name
from adapterhub_cl.types import BaseInfo, Evaluation

TAGS = ("lora", "adapterhub-cl")
_CLASSIFIES = ("accuracy", "macro_f1")


def card_header(
    name: str,
    base: BaseInfo,
    evaluations: Sequence[Evaluation] = (),
    *,
    library: str = "peft",
    relation: str = "",
    base_name: str = "",
    tags: Sequence[str] = TAGS,
) -> list[str]:
    """The lines of the header, between lines of three dashes.

    Args:
        evaluations: the scores, which become `model-index`.
        library: what opens the model.
        relation: to its base, as Hugging Face names it: `adapter`, `finetune`, `quantized`; empty leaves it out.
        base_name: the base's public name; default: its id or its folder's name.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-classification" if one.metric in _CLASSIFIES else "text-generation",
            dataset_type=public_name(one.data) or one.task,
            dataset_name=one.task,
            metric_type=one.metric,
            metric_value=round(one.value, 6),
        )
        for one in evaluations
        if math.isfinite(one.value)
    ]
    more: dict[str, Any] = {"model_name": name, "eval_results": results} if results else {}
    if relation:
        more["base_model_relation"] = relation
    data = ModelCardData(
        base_model=base_name or public_name(base.source), library_name=library, tags=list(tags), **more
    )
    return ["---", *data.to_yaml().splitlines(), "---", ""]
