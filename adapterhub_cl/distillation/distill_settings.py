"""The settings of a distillation, beside those of the training. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import flag, option


@dataclass(frozen=True)
class DistillationSettings:
    """How the student learns from its teachers. Every field is a flag of `distill`."""

    temperature: float = option(2.0, "temperature that softens both distributions before they are compared")
    task_loss: float = option(0.5, "weight (α) of the loss on the known answers, relative to the teachers'")
    features: str = option(
        "", "decoder layers whose hidden states should agree too, e.g. 3,5; default: none", joins=True
    )
    feature_weight: float = option(1.0, "weight of the loss on hidden states")
    top: int = option(512, "most likely tokens of a teacher to store for each position; the others count as one")

    def __post_init__(self) -> None:
        problems = []
        if not 0.1 <= self.temperature <= 100:
            problems.append(f"--temperature must be between 0.1 and 100, not {self.temperature:g}")
        for name in ("task_loss", "feature_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                problems.append(f"{flag(name)} must be at least 0, not {value:g}")
        if self.top < 1:
            problems.append(f"--top must be at least 1, not {self.top}")
        try:
            self.layers()
        except ValueError:
            problems.append(f"--features {self.features!r} is not a list of layers such as 3,5")
        if problems:
            raise UsageError("; ".join(problems), "cl-adapter distill --help lists the settings")

    def layers(self) -> list[int]:
        """`3,5` → `[3, 5]`."""
        found = sorted({int(part) for part in self.features.split(",")}) if self.features.strip() else []
        if any(layer < 0 for layer in found):
            raise ValueError(self.features)
        return found
