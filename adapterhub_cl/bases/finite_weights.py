"""Whether a base's weights are numbers: a damaged file may hold others, which every answer would then come from."""

from __future__ import annotations

from typing import Any


def spoilt_weights(model: Any) -> list[str]:
    """The names of a base's weights that hold values that are not finite; they are read once for each loaded model."""
    if not hasattr(model, "_adapterhub_spoilt"):
        weights = ((name, weight) for name, weight in model.named_parameters() if weight.is_floating_point())
        model._adapterhub_spoilt = [name for name, weight in weights if not bool(weight.isfinite().all())]
    found: list[str] = model._adapterhub_spoilt
    return found
