"""Which objectives a base supports, decided by its architecture with transformers' own tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

CAUSAL, CLASSIFICATION, MASKED = "causal_lm", "sequence_classification", "masked_lm"
CAUSAL_CLASS = "AutoModelForCausalLM"
# A plain-words description of each objective.
TASK_KINDS_OF = {CAUSAL: ("choice", "generation", "text"), CLASSIFICATION: ("choice",), MASKED: ("text",)}


@cache  # called for every row of a batch
def objectives_of(architecture: str) -> tuple[str, ...]:
    """The objectives of a base with this architecture (`architectures[0]` of its config.json), sorted by name.

    A causal language model supports `causal_lm`; so does a model of images and text whose text part is one (Gemma 3,
    Qwen3.5). An encoder is an architecture for which transformers has a masked language model and a sequence
    classification, and which is not a sequence-to-sequence model: it supports `sequence_classification`, and if the
    checkpoint itself is the masked language model, `masked_lm`. Anything else supports nothing.
    """
    if not architecture or "CausalLM" in architecture or "LMHead" in architecture:
        return (CAUSAL,)
    from transformers.models.auto import modeling_auto as auto

    masked = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    for kind in masked:
        known = kind in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        if known and kind not in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and architecture in _own(kind):
            return (CLASSIFICATION, MASKED) if architecture == masked[kind] else (CLASSIFICATION,)
    return (CAUSAL,) if _with_images(architecture) else ()


def auto_class(architecture: str) -> str:
    """The transformers class that loads a base for its own purpose, before it has any task."""
    from transformers.models.auto import modeling_auto as auto

    if is_encoder(architecture):
        return "AutoModelForMaskedLM"
    kind = _with_images(architecture)
    return (
        "AutoModelForImageTextToText" if kind and kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else CAUSAL_CLASS
    )


def _with_images(architecture: str) -> str:
    """The model type of an architecture for images and text that writes text; empty for any other."""
    from transformers.models.auto import modeling_auto as auto

    if architecture.endswith(("CausalLM", "LMHeadModel")):
        return ""
    for kind, name in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        if name == architecture and kind not in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            return str(kind)
    return ""


def why_unusable(config: Mapping[str, Any], architecture: str) -> str:
    """Why a base cannot be used although its architecture is named like a causal language model; empty if it can.

    Args:
        config: its config.json.
    """
    from transformers.models.auto import modeling_auto as auto

    kind, writing = str(config.get("model_type") or ""), auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind in ("xlnet", "xlm", "flaubert") and not config.get("causal"):
        return "which does not read text from left to right"
    if is_encoder(architecture) or architecture == "":
        return ""
    if kind in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES and kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        sequences = auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        if kind in writing and kind not in sequences and kind != "reformer" and not config.get("is_decoder"):
            return "whose layers also attend to later tokens: config.json does not set is_decoder"
    text = config.get("text_config")
    inner = str(text.get("model_type") or "") if isinstance(text, dict) else ""
    if _with_images(architecture) and kind not in writing and inner not in writing:
        return f"whose text part ({inner or 'unknown'}) is not a causal language model"
    return ""


def is_encoder(architecture: str) -> bool:
    """Whether a base with this architecture is an encoder, which does not write text."""
    return CLASSIFICATION in objectives_of(architecture)


def _own(kind: str) -> Iterator[str]:
    """The classes that transformers has for a model type, except those that write text."""
    from transformers.models.auto import modeling_auto as auto

    for table in (
        auto.MODEL_MAPPING_NAMES,
        auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
        auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    ):
        names = table.get(kind, ())
        yield from (names,) if isinstance(names, str) else names
