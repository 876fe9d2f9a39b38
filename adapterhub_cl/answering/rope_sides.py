"""Bases with two sets of rotary frequencies (longrope: Phi-3, Phi-4-mini), for short inputs and for long ones.

transformers chooses one for a whole batch by its longest row, so a short row would be answered otherwise beside a long
one than alone. Rows on either side of the limit are therefore computed in batches of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub_cl.bases.encoders import bare


def limit_of(model: Any) -> int | None:
    """The longest input, in tokens, that a base reads with the frequencies for short ones; None if it has one set."""
    whole = getattr(bare(model), "config", None)
    if whole is None:
        return None
    config = whole.get_text_config()
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for rope in (given, *given.values()):  # one for all layers, or one for each kind of layer
        if isinstance(rope, Mapping) and "longrope" in (rope.get("rope_type"), rope.get("type")):
            limit = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            return int(limit) if limit else None
    return None


def sides(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """The rows, by number, that may be computed together: those within the limit, and those beyond it.

    Args:
        lengths: of each row, in tokens.
    """
    limit = limit_of(model)
    if limit is None:
        return [list(range(len(lengths)))]
    within = [k for k, length in enumerate(lengths) if length <= limit]
    beyond = [k for k, length in enumerate(lengths) if length > limit]
    return [part for part in (within, beyond) if part]
