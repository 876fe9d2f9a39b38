"""Which objectives a base offers, decided by its architecture as transformers' own tables know it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

CAUSAL, CLASSIFICATION, MASKED = "causal_lm", "sequence_classification", "masked_lm"
# What each objective is for, as users say it.
TASK_KINDS_OF = {CAUSAL: ("choice", "generation", "text"), CLASSIFICATION: ("choice",), MASKED: ("text",)}


@cache  # asked for every row of a batch
def objectives_of(architecture: str) -> tuple[str, ...]:
    """The objectives of a base with this architecture (`architectures[0]` of its config.json), in order of names.

    A causal language model offers `causal_lm`. An encoder is what transformers has a masked language model and a
    sequence classification of, and no sequence-to-sequence model: it offers `sequence_classification`, and where the
    checkpoint itself is the masked language model, `masked_lm`. Anything else offers nothing.
    """
    if not architecture or "CausalLM" in architecture or "LMHead" in architecture:
        return (CAUSAL,)
    from transformers.models.auto import modeling_auto as auto

    masked = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    for kind in masked:
        known = kind in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        if known and kind not in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and architecture in _own(kind):
            return (CLASSIFICATION, MASKED) if architecture == masked[kind] else (CLASSIFICATION,)
    return ()


def is_encoder(architecture: str) -> bool:
    """Whether a base with this architecture reads a text as a whole and writes none."""
    return CLASSIFICATION in objectives_of(architecture)


def _own(kind: str) -> Iterator[str]:
    """The classes that transformers has of a model type, but for those that write."""
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
