"""The option that says where trainings are carried out. No torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub_cl.options import option

LOCAL, RAY = "local", "ray"


@dataclass(frozen=True, kw_only=True)
class SpreadOptions:
    """Where independent trainings are carried out."""

    on: str = option(
        LOCAL,
        "where the trainings run: local, one after another, or ray, side by side on the cluster that RAY_ADDRESS names",
        choices=(LOCAL, RAY),
    )
