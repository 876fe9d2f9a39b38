"""How much adapters disturb each other: the cosine of their updates, and where their signs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.consolidation.layers import parts_of, shapes_of
from adapterhub_cl.merging.factors import Factors, inner

ROWS = 32  # of each layer, on which signs are compared


@dataclass(frozen=True)
class Interference:
    """Two adapters beside each other.

    Attributes:
        one, other: their places in the list.
        cosine: ⟨ΔW₁, ΔW₂⟩ ÷ (‖ΔW₁‖·‖ΔW₂‖) over all layers: 1 the same direction, 0 unrelated, −1 against each other.
        sign_conflicts: share of the entries (on up to 32 rows of each layer that both change) whose signs differ,
            each counted by the smaller of its two sizes; half is what chance gives. None where they share no layer.
    """

    one: int
    other: int
    cosine: float
    sign_conflicts: float | None

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        conflicts = None if self.sign_conflicts is None else round(self.sign_conflicts, 4)
        return {
            "adapters": [names[self.one], names[self.other]],
            "cosine": round(self.cosine, 4),
            "sign_conflicts": conflicts,
        }


def interference(adapters: Sequence[LoraFile], seed: int = 0) -> list[Interference]:
    """Every pair of adapters."""
    pairs = list(combinations(range(len(adapters)), 2))
    inners = dict.fromkeys(pairs, 0.0)
    conflicting, compared = dict(inners), dict(inners)
    squares = [0.0] * len(adapters)
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes_of(adapters).items():
        parts = parts_of(adapters, name, shape)
        chosen = torch.randperm(shape[0], generator=generator)[:ROWS]
        rows = [Factors(part.b[chosen], part.a).dense() if part.rank else None for part in parts]
        for k, part in enumerate(parts):
            squares[k] += inner(part, part) if part.rank else 0.0
        for i, j in pairs:
            one, other = rows[i], rows[j]
            if one is None or other is None:
                continue
            inners[i, j] += inner(parts[i], parts[j])
            size = torch.minimum(one.abs(), other.abs())
            conflicting[i, j] += float((size * (one.sign() != other.sign())).sum())
            compared[i, j] += float(size.sum())
    found = []
    for i, j in pairs:
        size = (squares[i] * squares[j]) ** 0.5
        share = conflicting[i, j] / compared[i, j] if compared[i, j] else None
        found.append(Interference(i, j, inners[i, j] / size if size > 0 else 0.0, share))
    return found
